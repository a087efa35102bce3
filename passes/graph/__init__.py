"""The graph itself: capture, canonical text, editing, legality, signature."""
