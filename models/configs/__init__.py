"""One frozen config per method; its fields are the method's documented options. Importing them needs no torch."""
