"""Reads networks and records: gradient similarity, conflict between domains, statistics."""
