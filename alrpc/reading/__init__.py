"""Reading files that others may have damaged: regular files only, of bounded size, whose contents are checked against types."""
