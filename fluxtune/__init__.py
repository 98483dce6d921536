"""fluxtune: teach FLUX a person, a product or a style from a few pictures."""

__version__ = "0.1.0"
