"""Handing over to other programs."""
