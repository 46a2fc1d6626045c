"""Exports of a finished run: its network as files that need nothing of this package."""
