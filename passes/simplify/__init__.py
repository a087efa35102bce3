"""Exact clean-ups."""
