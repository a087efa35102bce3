"""For people: the command line, the demo, reports."""
