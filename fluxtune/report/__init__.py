"""Self-contained pages: one file that any browser shows, with nothing to fetch."""
