"""Data sets of Hugging Face's `datasets`, found by name or path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alrpc.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

ON_DISK = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves in a folder


def load_splits(name: str, root: Path | None, subset: str | None = None) -> dict[str, Dataset]:
    """The splits of a data set on the hub, which is downloaded if it is absent, or in a folder, by their names.

    Raises:
        UserError: which says after "… is " that there is none.
    """
    import datasets

    try:
        if any((Path(name) / file).is_file() for file in ON_DISK):
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, *filter(None, [subset]), cache_dir=str(root) if root else None)
    except Exception as error:  # many libraries raise their own: no network, no space, no such data set
        reason = " ".join(str(error).split()) or type(error).__name__
        where = (
            "no data set"
            if Path(name).exists()
            else f"neither on this machine nor to be had from huggingface.co/datasets/{name}"
        )
        raise UserError(f"{where}: {reason}") from error
    return dict(found) if isinstance(found, dict) else {"train": found}
