"""What may happen to a graph: passes, the order they run in, and what they report. Nothing here knows a file format."""
