"""The figures of a report, one a file; each takes records' data and gives a matplotlib figure."""
