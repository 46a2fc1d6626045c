"""Using a finished run: its network as a predictor of raw examples, from Python and from files; its evaluation."""
