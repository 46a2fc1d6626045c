"""What a run tells while it is under way: in the terminal and in its files."""
