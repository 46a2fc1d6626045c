"""The lifetime of a run in either engine, and the management of its processes."""
