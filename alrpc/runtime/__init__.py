"""A run's lifetime in either engine, and its processes."""
