"""Preprocessing: how a raw example, such as an image file, a text or a list of numbers, becomes the input of a network.

A run carries it in its directory, so that prediction needs neither the data of the training nor a cache.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import numpy
import torch
from pydantic import AfterValidator, Field, TypeAdapter
from torch import Tensor

from alrpc.data.checks import first_not_finite
from alrpc.data.tokenizer import PADDING, UNKNOWN, encode, pad
from alrpc.errors import UserError
from alrpc.objectives.base import Tensors
from alrpc.reading.documents import FLOAT32
from alrpc.reading.regular import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image
    from tokenizers import Tokenizer

MOST_PIXELS = 50_000_000  # of an image that comes as bytes, as those of strangers do: a small file may unpack to gigabytes
MODES = {1: "L", 3: "RGB"}  # Pillow's, by the number of channels
CHANNELS = (1, 3, 4)  # of an array of pixels

Size = Annotated[int, Field(ge=1, le=1 << 20)]
Finite = Annotated[float, Field(gt=-FLOAT32, lt=FLOAT32)]

Described = Mapping[str, tuple[str, tuple[int | None, ...]]]
"""Type, and shape without the first dimension, of each tensor that a preprocessing makes; None where a size may differ."""


def _check_dtype(name: str) -> str:
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise ValueError("it must be a type of torch's tensors, such as float32")
    return name


@dataclass(frozen=True)
class ImagePreprocessing:
    """Images of one size, normalised by channel: (pixel / 255 - mean) / deviation.

    An example is a file, by its path or as its bytes; a `PIL.Image`; an array of pixels, uint8, (H, W), (H, W, C) or (C, H, W); or
    the network's input itself, an array of floats, (C, H, W). All but the last are converted to the number of channels, and resized.
    """

    channels: Literal[1, 3]
    height: Size
    width: Size
    mean: tuple[Finite, ...]
    """By channel, of pixels in [0, 1]."""
    deviation: tuple[Annotated[Finite, Field(gt=0)], ...]
    kind: Literal["images"] = "images"

    def __post_init__(self):
        for name in ("mean", "deviation"):  # a list, which equals no tuple, is as good
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not len(self.mean) == len(self.deviation) == self.channels:
            raise UserError(
                f"preprocessing: got {len(self.mean)} means and {len(self.deviation)} deviations for {self.channels} channels; give "
                "one of each for a channel"
            )

    @property
    def tensors(self) -> Described:
        return {"x": ("float32", (self.channels, self.height, self.width))}

    def prepare(self, example: Any) -> Tensor:
        """The input that an example becomes, (C, H, W), float32; raises UserError for what is no image."""
        if isinstance(example, str | Path):
            return self.normalise(read_image(Path(example), self.channels, (self.height, self.width)))
        if isinstance(example, bytes):
            return self.normalise(_decode(io.BytesIO(example), self.channels, (self.height, self.width), MOST_PIXELS))
        if isinstance(example, numpy.ndarray | Tensor):
            array = example.numpy(force=True) if isinstance(example, Tensor) else example
            if array.dtype.kind == "f":
                return _tensor_of(array, "float32", (self.channels, self.height, self.width))
            example = _image_of(array)
        if not hasattr(example, "convert"):
            raise UserError(f"got {type(example).__name__}; give an image: a path, bytes, a PIL.Image or an array")
        return self.normalise(pixels_of(example, self.channels, (self.height, self.width)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """The input of a network, float32, of pixels, (..., C, H, W) uint8."""
        return normalise(pixels, *(torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.deviation)))

    def collate(self, inputs: Sequence[Tensor]) -> Tensors:
        """The network's named tensors of N prepared examples."""
        return {"x": torch.stack(list(inputs))}


@dataclass(frozen=True)
class TextPreprocessing:
    """Texts as indices of words, padded to the longest of a micro-batch."""

    tokenizer: str
    """The JSON of a tokenizer of Hugging Face's `tokenizers`, which also cleans the text: lower case, no stop words, …"""
    max_tokens: Size
    """Number of words after which a text is cut."""
    padding: Annotated[int, Field(ge=0)] = PADDING
    """The index that fills a shorter text."""
    unknown: Annotated[int, Field(ge=0)] = UNKNOWN
    """The index of a word that is not in the vocabulary, and of a text without words."""
    kind: Literal["texts"] = "texts"

    @property
    def tensors(self) -> Described:
        return {"x": ("int64", (None,)), "mask": ("bool", (None,))}

    def prepare(self, example: Any) -> str:
        """The text itself; raises UserError for what is none."""
        if not isinstance(example, str) or not example.strip():
            raise UserError(f"got {'an empty text' if isinstance(example, str) else type(example).__name__}; give a text")
        return example.encode(errors="replace").decode()  # a lone surrogate, which JSON may have, is no text

    def collate(self, inputs: Sequence[str]) -> Tensors:
        """Tokens `x`, (N, T), int64, and `mask`, (N, T), which is true for words."""
        tokens, offsets = encode(self._parsed, inputs, self.max_tokens, self.unknown)
        return pad(tokens, offsets[:-1], offsets[1:], self.padding)

    @cached_property
    def _parsed(self) -> Tokenizer:
        return parse_tokenizer(self.tokenizer)


@dataclass(frozen=True)
class ArrayPreprocessing:
    """Numbers: an array for each of the network's named tensors, or, where it has only one, that array without its name."""

    tensors: dict[str, tuple[Annotated[str, AfterValidator(_check_dtype)], tuple[Annotated[int, Field(ge=0)], ...]]]
    """Type, and shape without the first dimension, of each tensor."""
    kind: Literal["arrays"] = "arrays"

    def __post_init__(self):
        object.__setattr__(self, "tensors", {name: (dtype, tuple(shape)) for name, (dtype, shape) in self.tensors.items()})

    @classmethod
    def of(cls, sample: Tensors) -> ArrayPreprocessing:
        """That of a data set with this sample, (N, ...) each."""
        return cls(
            {name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape[1:])) for name, tensor in sample.items()}
        )

    def prepare(self, example: Any) -> Tensors:
        """The named tensors of an example, without a first dimension; raises UserError for other numbers than these."""
        if not isinstance(example, Mapping):
            example = dict.fromkeys(self.tensors if len(self.tensors) == 1 else (), example)
        if missing := [name for name in self.tensors if name not in example]:
            raise UserError(f"no {missing[0]!r}; the network takes {', '.join(self.tensors)}, give each by its name")
        return {name: _tensor_of(example[name], *described) for name, described in self.tensors.items()}

    def collate(self, inputs: Sequence[Tensors]) -> Tensors:
        """The network's named tensors, (N, ...) each, of N prepared examples."""
        return {name: torch.stack([each[name] for each in inputs]) for name in self.tensors}


Preprocessing = ImagePreprocessing | TextPreprocessing | ArrayPreprocessing
"""Each has `prepare`, the input that a raw example becomes, or a UserError; `collate`, the network's tensors of N of them; and
`tensors`, which describes these."""
PREPROCESSING: TypeAdapter[Preprocessing] = TypeAdapter(Annotated[Preprocessing, Field(discriminator="kind")])


def check_fits(preprocessing: Preprocessing, sample: Tensors) -> None:
    """Refuse, with a UserError, a preprocessing whose tensors a network that is built for this sample, (N, ...) each, cannot take."""
    given, wanted = preprocessing.tensors, ArrayPreprocessing.of(sample).tensors
    if given.keys() != wanted.keys() or not all(_alike(given[name], wanted[name]) for name in given):
        raise UserError(f"preprocessing: gives {_told(given)}; a sample of the data set has {_told(wanted)}")


def _alike(given: tuple[str, tuple[int | None, ...]], wanted: tuple[str, tuple[int, ...]]) -> bool:
    (dtype, sizes), (wanted_dtype, wanted_sizes) = given, wanted
    alike = [size in (None, wanted_size) for size, wanted_size in zip(sizes, wanted_sizes, strict=False)]
    return dtype == wanted_dtype and len(sizes) == len(wanted_sizes) and all(alike)


def _told(described: Described) -> str:
    return ", ".join(
        f"{name} {dtype} ({', '.join('any' if size is None else str(size) for size in sizes)})"
        for name, (dtype, sizes) in described.items()
    )


def normalise(pixels: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Normalise pixels, (..., C, H, W) uint8, to float32; mean and deviation are (C, 1, 1), of pixels in [0, 1]."""
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(deviation)


def read_image(path: Path, channels: int, size: tuple[int, int]) -> Tensor:
    """Decode an image file: (channels, height, width) uint8, resized to this height and width.

    Raises:
        UserError: naming a file that cannot be read.
    """
    with open_regular(path) as file:
        try:
            return _decode(file, channels, size)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def _decode(file: BinaryIO, channels: int, size: tuple[int, int], most: float = math.inf) -> Tensor:
    """The pixels of an image's file; raises UserError for what is none, or has more than so many pixels."""
    from PIL import Image

    try:
        image = Image.open(file)
        if image.width * image.height > most:
            raise UserError(f"got an image of {image.width} x {image.height} pixels; give at most {most} in all")
        return pixels_of(image, channels, size)
    except UserError:
        raise
    except Exception as error:  # Pillow raises SyntaxError for some damaged files, among others
        reason = " ".join(str(error).split()).partition(" <_io.")[0] or type(error).__name__
        raise UserError(f"not a readable image: {reason}") from error


def pixels_of(image: Image, channels: int, size: tuple[int, int]) -> Tensor:
    """The pixels of a `PIL.Image`, (channels, height, width) uint8, resized to this height and width."""
    from torchvision.transforms.v2 import functional

    return functional.pil_to_tensor(functional.resize(image.convert(MODES[channels]), list(size), antialias=True))


def _image_of(array: numpy.ndarray) -> Image:
    """The `PIL.Image` of pixels, uint8, (H, W), (H, W, C) or (C, H, W)."""
    from PIL import Image

    if array.ndim == 3 and array.shape[2] not in CHANNELS and array.shape[0] in CHANNELS:
        array = array.transpose(1, 2, 0)
    if (
        array.dtype != numpy.uint8
        or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in CHANNELS))
        or 0 in array.shape
    ):
        raise UserError(
            f"got {array.dtype} {array.shape}; give pixels, uint8, (H, W) or (H, W, C), or floats as the network takes"
        )
    return Image.fromarray(numpy.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array))


def _tensor_of(numbers: Any, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers as a tensor of this type and shape.

    Raises:
        UserError: for other things than numbers, another number of them, or some that are not finite or that the type has not.
    """
    wanted = f"give {dtype} {tuple(shape)}"
    try:
        given = numbers.detach().cpu() if isinstance(numbers, Tensor) else torch.tensor(numpy.asarray(numbers))
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"got what is no array of numbers; {wanted}") from error
    tensor = given.to(getattr(torch, dtype))
    if tuple(given.shape) != tuple(shape):
        if given.numel() != tensor.new_empty(shape).numel() or given.ndim != 1:
            raise UserError(f"got {tuple(given.shape)}; {wanted}, or as many numbers in a row")
        tensor = tensor.reshape(shape)
    if given.is_complex():
        raise UserError(f"got {given.dtype}; {wanted}")
    if not tensor.is_floating_point() and not numpy.array_equal(tensor.numpy(), _comparable(given).reshape(tensor.shape)):
        raise UserError(f"got {given.dtype}, with a number that {dtype} does not have; {wanted}")
    if first_not_finite(tensor.reshape(1, -1)) is not None:
        raise UserError(f"has nan or inf; {wanted}, all finite")
    return tensor


def _comparable(given: Tensor) -> numpy.ndarray:
    return (given.double() if given.is_floating_point() else given).numpy()  # numpy has no bfloat16


def parse_tokenizer(text: str, source: str = "the tokenizer") -> Tokenizer:
    """The tokenizer of a JSON text.

    Args:
        source: what the text is, for the message.

    Raises:
        UserError: when it is none, or the extra `text` is missing.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError("texts need the extra: pip install 'alrpc[text]' (tokenizers is missing)") from error
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # it raises no type of its own
        raise UserError(f"{source}: not a tokenizer of Hugging Face's tokenizers: {' '.join(str(error).split())}") from error
