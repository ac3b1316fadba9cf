"""The figures of a report, by kind: each takes data of records and gives a matplotlib figure."""
