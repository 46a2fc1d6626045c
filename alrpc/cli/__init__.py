"""The command line; each command has its own file. No module here imports torch before a command runs."""
