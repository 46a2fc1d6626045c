"""What a process has from the system: its standard streams, its parent, the processes that it starts."""
