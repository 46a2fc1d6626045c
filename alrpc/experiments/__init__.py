"""Measurements and comparisons: the engine's benchmarks, baselines, profiles."""
