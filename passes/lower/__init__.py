"""Rewrites of a deployed graph into what an engine takes. Nothing here executes."""
