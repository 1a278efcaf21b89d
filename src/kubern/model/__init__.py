"""The nouns and the pure rules of the API: no I/O, no clock, no randomness, and no imports from the rest of kubern."""
