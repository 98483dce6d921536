"""Settings: one schema, read in layers, each value knowing where it came from."""
