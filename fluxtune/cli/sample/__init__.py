"""`fluxtune sample`: prompts and LoRAs to pictures."""

from fluxtune.cli.sample.command import sample

__all__ = ["sample"]
