"""The machine that does the work: its graphics card and driver, its folders, the precision and memory it has."""
