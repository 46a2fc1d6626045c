"""Training of components: the stream of packets, stages, updates and optimizers; and the sequential engine."""
