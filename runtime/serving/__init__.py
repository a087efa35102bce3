"""Serving of exported artifacts."""
