"""From pictures to captions."""
