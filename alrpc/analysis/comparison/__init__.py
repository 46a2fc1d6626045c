"""Methods side by side: the same blocks, data, epochs and seeds, in interleaved rounds."""
