"""A run's state on disk: what it is, how it is written, committed, and gone on from."""
