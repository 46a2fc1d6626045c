"""What a run's files tell after it: timeline, trace, network quality, report."""
