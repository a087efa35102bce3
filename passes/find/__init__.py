"""Typed records of what stands in a graph, or the reason why something does not."""
