"""What the files of a sweep's folder are called, for those who write and those who read them."""

PLAN_FILE = "plan.json"
FAILURE_FILE = "failure.json"
VERSION = 1
"""Of the form of both."""
