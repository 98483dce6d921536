"""Pictures and captions on disk, how they become batches, and the cache of what is computed from them."""
