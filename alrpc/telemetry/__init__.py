"""Telemetry of a run that is under way: its files, the terminal, TensorBoard, torch.profiler."""
