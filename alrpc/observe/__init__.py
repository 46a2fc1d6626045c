"""What a run shows and leaves behind: progress in the terminal, metrics.jsonl, summary.json."""
