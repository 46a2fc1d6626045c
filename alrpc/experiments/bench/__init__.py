"""The engine measured: against what the same processes do without it, and alone with simulated stages."""
