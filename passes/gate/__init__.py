"""Passes that attach adapters and insert gates."""
