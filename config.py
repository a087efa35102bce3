"""Names and numbers that passes and methods share."""
