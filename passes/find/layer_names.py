"""Which transformer layer a module belongs to, read from its path."""

from __future__ import annotations


def layer_of(path: str) -> str:
    """The transformer layer a module path belongs to: the path up to its first number, or '' outside any."""
    parts = path.split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: index + 1])
    return ""
