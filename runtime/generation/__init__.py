"""Generation: prompts in, tokens out, one at a time, by any engine that prefills and decodes."""
