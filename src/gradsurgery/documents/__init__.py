"""Everything that is written to disk and read again. Needs pydantic, and no torch."""
