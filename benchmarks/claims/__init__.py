"""The theory, claim by claim: each file tests one against exact references."""
