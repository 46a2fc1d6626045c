"""The sequential engine: one stage with all components and no links, fed by the same program. The pipeline's results equal it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from alrpc.training.batch_norm import single_samples_told
from alrpc.training.packet import Packet
from alrpc.training.stage import Stage

STATUS_EVERY = 0.2  # seconds


def run_stream(stage: Stage, packets: Iterator[Packet]) -> None:
    """Process a stream in this process.

    Raises:
        NonFinite: naming component, step and value.
        UserError: for a micro-batch of one sample that batch norm cannot train on.
    """
    timing, emitted = stage.timing, 0.0
    timing.enter("waiting_to_receive")  # waiting for the loader
    with single_samples_told():
        for packet in packets:
            timing.begin_packet(packet.kind, packet.epoch, packet.step)
            on_device = {name: tensor.to(stage.device) for name, tensor in packet.tensors.items()}
            stage.handle(packet.with_tensors(on_device))
            timing.enter("waiting_to_receive")
            if time.monotonic() - emitted > STATUS_EVERY:
                stage.emit(stage.status())
                emitted = time.monotonic()
    stage.emit(stage.status())
