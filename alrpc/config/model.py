"""The section `model` of a configuration: which network, what it begins with, and what of it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, NonNegativeInt, PlainSerializer, ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator

from alrpc.config.section import Section

LIBRARIES = ("torchvision", "timm", "hf")
"""What may stand before the colon in the name of a model that is no code of the user's."""


def is_own(name: str) -> bool:
    """Whether a model's name is that of a function of the user's own."""
    library, colon, _ = name.partition(":")
    return bool(colon) and library not in LIBRARIES


def _as_given(value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """A function of one's own may have a parameter of the field's name, of any kind; `alrpc.models.common_fields` checks the others."""
    return value if is_own(info.data.get("name", "")) else check(value)


OwnOrCommon = WrapValidator(_as_given), PlainSerializer(lambda value: str(value) if isinstance(value, Path) else value)


class Model(Section):
    """Which model to build. The other fields of this section are the arguments of the model's function.

    `weights` and `freeze` too, with its own meaning, where a function of the user's own has a parameter of that name."""

    model_config = ConfigDict(extra="allow")

    name: str = "mlp"
    """mlp, vgg, resnet, lstm or transformer; torchvision:NAME, timm:NAME or hf:TYPE for a network of these libraries; or
    package.module:function for a function of your own that returns a list of modules. A run of `alrpc.train` has python."""
    weights: Annotated[Path | None, *OwnOrCommon] = None
    """A file of trained parameters to begin with, by the names of the model's state dict: safetensors, or a state dict of torch.save,
    read by torch's weights-only loader."""
    freeze: Annotated[NonNegativeInt, *OwnOrCommon] = 0
    """Number of first blocks that are not trained: their parameters and the statistics of their norms stay, and they run as in
    evaluation. What the objective adds to them learns all the same."""

    handover: Annotated[Literal["fp32", "bf16", "int8"], *OwnOrCommon] = "fp32"
    """The precision in which each component hands its activations to the next, whether in one process or over a link: fp32 for as they
    are, bf16 for half the bytes, int8 for a quarter, with a scale for each sample's, token's or image channel's row."""

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
        return is_own(self.name)
