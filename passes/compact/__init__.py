"""Passes that turn decisions into work that is not done."""
