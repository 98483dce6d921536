"""Data sets that a file describes, ours or another trainer's: read as rows of ``[[dataset.folders]]`` and a layer of
settings. ``docs/datasets.md`` says which key becomes what."""
