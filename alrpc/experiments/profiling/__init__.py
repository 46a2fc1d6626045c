"""Profiles: a few steps of a run, recorded down to every operator."""
