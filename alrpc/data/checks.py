"""Checks of a data set: types, shapes, ranges and finiteness of labels and inputs, when it is made and when it is read."""

from __future__ import annotations

import torch
from torch import Tensor

from alrpc.errors import UserError
from alrpc.objectives.targets import Classes, Labels, Target, Values

AT_ONCE = 1 << 22  # numbers that are looked at together, so that the check of a large tensor takes little memory


def check_labels(labels: object, target: Target, split: str, indices: Tensor | None = None) -> None:
    """Check that labels, (N,) or (N, width), are such as the target has.

    Args:
        split: train or test.
        indices: (N,) the samples' indices in the split; None for 0 … N - 1.

    Raises:
        UserError: naming the split, and the index of the first label that is wrong.
    """
    if not isinstance(labels, Tensor):
        raise UserError(f"{split} split: labels are of type {type(labels).__name__}; give a tensor (torch.as_tensor)")
    wrong = _FINDS[type(target)](labels, target, split)
    if wrong is not None:
        row, reason = wrong
        raise UserError(f"{split} split: label {row if indices is None else int(indices[row])} {reason}")


def _first_wrong_class(labels: Tensor, target: Classes, split: str) -> tuple[int, str] | None:
    """The row of the first label that is no class, and why; raises UserError if none of them can be one."""
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        given = f"{labels.dtype} {tuple(labels.shape)}"
        raise UserError(f"{split} split: labels are {given}; for {target} they are class indices, integers (N,)")
    classes = labels.long()
    outside = (classes < 0) | (classes >= target.count)
    if not outside.any():
        return None
    row = int(outside.nonzero()[0])
    return row, f"is {int(classes[row])}; the classes of {target} are 0 to {target.count - 1}"


def _first_wrong_label(labels: Tensor, target: Labels, split: str) -> tuple[int, str] | None:
    """The row of the first label that is neither 0 nor 1, and why; raises UserError if none of them can be right."""
    if labels.ndim != 2 or labels.shape[1] != target.count or labels.is_complex():
        given = f"{labels.dtype} {tuple(labels.shape)}"
        raise UserError(f"{split} split: labels are {given}; for {target} they are 0 and 1, (N, {target.count})")
    wrong = (labels != 0) & (labels != 1)
    if not wrong.any():
        return None
    row, number = wrong.nonzero()[0].tolist()
    return row, f"has {labels[row, number].item()} at {number}; each of the labels of {target} is 0 or 1"


def _first_wrong_value(labels: Tensor, target: Values, split: str) -> tuple[int, str] | None:
    """The row of the first label that is not finite, and why; raises UserError if none of them can be a value."""
    is_flat = labels.ndim == 1 and target.width == 1
    if not (is_flat or (labels.ndim == 2 and labels.shape[1] == target.width)) or labels.is_complex():
        given = f"{labels.dtype} {tuple(labels.shape)}"
        raise UserError(f"{split} split: labels are {given}; for {target} they are numbers (N, {target.width})")
    row = first_not_finite(labels, torch.float32)
    return None if row is None else (row, "has nan or inf; values must be finite in torch.float32")


_FINDS = {Classes: _first_wrong_class, Labels: _first_wrong_label, Values: _first_wrong_value}


def check_finite(inputs: Tensor, split: str, indices: Tensor | None = None, name: str = "input") -> None:
    """Check that inputs, (N, ...), are finite; arguments and exception are those of `check_labels`."""
    wrong = first_not_finite(inputs)
    if wrong is not None:
        index = wrong if indices is None else int(indices[wrong])
        raise UserError(f"{split} split: {name} {index} has nan or inf; inputs must be finite")


def first_not_finite(values: Tensor, dtype: torch.dtype | None = None) -> int | None:
    """The index of the first row of (N, ...) with a number that is not finite; None if there is none.

    Args:
        dtype: the type in which the numbers will be used; None for their own.
    """
    if not (values.is_floating_point() or values.is_complex()) or values.numel() == 0:
        return None
    dtype = dtype or torch.promote_types(values.dtype, torch.float32)
    rows = max(1, AT_ONCE // (values.numel() // len(values)))
    for start in range(0, len(values), rows):
        used = values[start : start + rows].to(dtype)
        if not used.sum().isfinite():  # not finite if a number is not, but also if the sum overflows
            wrong = ~used.isfinite().reshape(len(used), -1).all(dim=1)
            if wrong.any():
                return start + int(wrong.nonzero()[0])
    return None


def check_batch(batch: object, target: Target, split: str, indices: Tensor) -> None:
    """Check what a `Split.batch` has given for n samples: named tensors, (n, ...) each, and n labels.

    Raises:
        UserError: naming the split and what is wrong; for a label or an input, its index in the split.
    """
    if not (isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[0], dict)):
        raise UserError(f"{split} split: its batch() gave {type(batch).__name__}; it must give a dict of tensors, and labels")
    tensors, labels = batch
    check_labels(labels, target, split, indices)
    for name, tensor in (*tensors.items(), ("labels", labels)):
        if not isinstance(tensor, Tensor) or tensor.ndim == 0 or len(tensor) != len(indices):
            given = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UserError(f"{split} split: its batch() gave {given} as {name!r} of {len(indices)} samples; give one row each")
        check_finite(tensor, split, indices, f"{name!r} of sample")
