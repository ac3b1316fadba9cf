"""Domain generalization via gradient surgery."""
