"""One paper a file: which passes, in which order, what objective."""
