"""The pipeline engine: a coordinator (rank 0) feeds micro-batches to stages (ranks 1 … S), each a process of its own.

    time ──►         0    1    2    3    4    5
    stage 1          1    2    3    4    5    E         k: the stage trains its components on micro-batch k
    stage 2               1    2    3    4    5  E      E: the marker that ends the epoch
    stage 3                    1    2    3    4  …

Activations and targets flow in one direction only, so a stage never waits for a later one unless the window of packets
between them is full.
"""
