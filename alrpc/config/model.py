"""The section `model` of a configuration: which network, what it begins with, and what of it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, NonNegativeInt

from alrpc.config.section import Section

LIBRARIES = ("torchvision", "timm", "hf")
"""What may stand before the colon in the name of a model that is no code of the user's."""


class Model(Section):
    """Which model to build. The other fields of this section are the arguments of the model's function."""

    model_config = ConfigDict(extra="allow")

    name: str = "mlp"
    """mlp, vgg, resnet, lstm or transformer; torchvision:NAME, timm:NAME or hf:TYPE for a network of these libraries; or
    package.module:function for a function of your own that returns a list of modules. A run of `alrpc.train` has python."""
    weights: Path | None = None
    """A file of trained parameters to begin with, by the names of the model's state dict: safetensors, or a state dict of torch.save,
    read by torch's weights-only loader."""
    freeze: NonNegativeInt = 0
    """Number of first blocks that are not trained: their parameters and the statistics of their norms stay, and they run as in
    evaluation. What the objective adds to them learns all the same."""

    @property
    def fields(self) -> dict[str, Any]:
        """The arguments of the model's function."""
        return dict(self.model_extra or {})

    @property
    def library(self) -> str | None:
        """The library that the model is of, if it is one of `LIBRARIES`."""
        library, colon, _ = self.name.partition(":")
        return library if colon and library in LIBRARIES else None

    @property
    def is_own(self) -> bool:
        """Whether the model is built by a function of the user's own."""
        return ":" in self.name and self.library is None
