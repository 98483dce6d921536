"""From the name of a model to a folder with its files: embedded, local, or from the hub."""
