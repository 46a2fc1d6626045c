"""A run as an HTTP server: dynamic batches, plain JSON, the Open Inference Protocol, metrics, and a page to try it by hand."""
