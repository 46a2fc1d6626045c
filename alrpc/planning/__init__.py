"""Which components belong to which stage."""
