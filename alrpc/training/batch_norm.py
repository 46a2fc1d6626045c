"""What batch norm cannot train on: a micro-batch of one value a channel, as a single sample left over at the end of an epoch is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alrpc.errors import UserError

REFUSED = "Expected more than 1 value per channel when training"  # torch's words, torch/nn/functional.py


@contextmanager
def single_samples_told() -> Iterator[None]:
    """Tell what torch raises for such a micro-batch as a UserError that says what would be right."""
    try:
        yield
    except ValueError as error:
        if REFUSED not in str(error):
            raise
        raise UserError(
            f"data.batch_size: a micro-batch has one sample, of which batch norm knows no variance ({error}); give a size by which "
            "no single sample is left at the end of an epoch"
        ) from error
