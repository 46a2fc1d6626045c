"""Analysis of the files that a run has left: timeline, trace, network quality, report."""
