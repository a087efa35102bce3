"""From a graph over whole texts to two that generate: a prefill that answers with its cache, a decode that reads it."""
