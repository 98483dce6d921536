"""Runs that move to another trainer and back: its settings for ours, and ours for its."""
