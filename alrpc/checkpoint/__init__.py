"""Checkpoints: what state they contain, how they are written and committed, and how a run resumes from one."""
