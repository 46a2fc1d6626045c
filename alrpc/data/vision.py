"""Image data sets: those of torchvision, held in memory, and folders of files, which are decoded when they are first wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from alrpc.config import Data
from alrpc.data.augmentation import augment
from alrpc.data.catalog import TINY_IMAGENET
from alrpc.data.dataset import Dataset, Split
from alrpc.data.decoded import Decoded
from alrpc.data.preprocessing import ImagePreprocessing, normalise, read_image
from alrpc.errors import UserError
from alrpc.objectives.base import Tensors
from alrpc.objectives.targets import Classes
from alrpc.reading.regular import MIB, read_text
from alrpc.system import derive_seed

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

# Mean and standard deviation of the training pixels, in [0, 1], by channel; the values of ImageNet for the user's own folder.
STATISTICS = {
    "mnist": ([0.1307], [0.3081]),
    "fashion-mnist": ([0.2860], [0.3530]),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    "cifar100": ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    "tiny-imagenet": ([0.4802, 0.4481, 0.3975], [0.2770, 0.2691, 0.2821]),
    "image-folder": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
SIDES = {"mnist": 28, "fashion-mnist": 28, "cifar10": 32, "cifar100": 32}  # height and width; data.image_size for the others
LISTED = 64 * MIB  # bytes of the longest list of images


@dataclass(frozen=True, kw_only=True)
class Images(Split):
    """Images in memory: `inputs` is (N, C, H, W) uint8; a micro-batch is normalised float32.

    mean, deviation: (C, 1, 1). draw: seed and epoch of the augmentation's random numbers; None for no augmentation.
    """

    mean: Tensor
    deviation: Tensor
    augmentation: Literal["none", "basic", "strong"] = "none"
    draw: tuple[int, int] | None = None

    def batch(self, indices: Tensor) -> tuple[Tensors, Tensor]:
        images = self.pixels(indices)
        if self.draw is not None:
            images = augment(images, self.augmentation, *self.draw, indices)
        return {"x": normalise(images, self.mean, self.deviation)}, self.labels[indices]

    def during(self, seed: int, epoch: int) -> Images:
        return self if self.augmentation == "none" else dataclasses.replace(self, draw=(seed, epoch))

    def pixels(self, indices: Tensor) -> Tensor:
        """The images with these indices, (n, C, H, W) uint8."""
        return self.inputs[indices]


@dataclass(frozen=True, kw_only=True)
class ImageFiles(Images):
    """Images in files: `inputs` is a list of paths; each image is decoded on demand and resized to `shape`, (C, H, W)."""

    shape: tuple[int, int, int]
    decoded: Decoded

    def pixels(self, indices: Tensor) -> Tensor:
        """The images with these indices, (n, C, H, W) uint8; raises UserError naming a file that cannot be read."""
        return self.decoded.get(indices, self.decode)

    def decode(self, index: int) -> Tensor:
        """The image with this index, (C, H, W) uint8; raises like `pixels`."""
        return read_image(Path(self.inputs[index]), self.shape[0], self.shape[1:])

    def part(self, rows: Tensor) -> Split:
        decoded = Decoded(len(rows), self.shape)  # which goes by the indices of the part
        return dataclasses.replace(super().part(rows), decoded=decoded)


@dataclass(frozen=True, kw_only=True)
class Views(Split):
    """Two views of each of N images: sample i is the weak view of image i, sample i + N the strong one.

    A micro-batch of an even number of samples has both views of its images.
    """

    weak: Images
    strong: Images

    @classmethod
    def of(cls, images: Images) -> Views:
        weak, strong = (dataclasses.replace(images, augmentation=kind) for kind in ("basic", "strong"))
        return cls(range(2 * len(images)), images.labels.repeat(2), weak=weak, strong=strong)

    def batch(self, indices: Tensor) -> tuple[Tensors, Tensor]:
        is_strong = indices >= len(self.weak)
        rows: list[Tensor] = [torch.empty(0)] * len(indices)
        for view, chosen, first in ((self.weak, ~is_strong, 0), (self.strong, is_strong, len(self.weak))):
            places = chosen.nonzero().flatten().tolist()
            images = view.batch(indices[chosen] - first)[0]["x"] if places else ()
            for place, image in zip(places, images, strict=True):
                rows[place] = image
        return {"x": torch.stack(rows)}, self.labels[indices]

    def during(self, seed: int, epoch: int) -> Views:
        strong = self.strong.during(derive_seed(seed, "strong view"), epoch)  # its crops are not those of the weak view
        return dataclasses.replace(self, weak=self.weak.during(seed, epoch), strong=strong)

    def hold_out(self, share: float, seed: int, by_class: bool) -> tuple[Views, Split]:
        """Views of the images that remain, and the other images, each once and as it is."""
        rest, held = dataclasses.replace(self.weak, augmentation="none").hold_out(share, seed, by_class)
        return Views.of(rest), held

    def order(self, seed: int, epoch: int, batch_size: int) -> Tensor:
        images = self.weak.order(seed, epoch, batch_size // 2).split(batch_size // 2)
        return torch.cat([view for of_batch in images for view in (of_batch, of_batch + len(self.weak))])


def load(data: Data) -> Dataset:
    """Read an image data set: x is (n, C, H, W) float32, normalised by channel; labels are class indices.

    mnist and fashion-mnist (1 × 28 × 28), cifar10 and cifar100 (3 × 32 × 32) are downloaded into `root` if they are absent.
    tiny-imagenet and image-folder are 3 × image_size × image_size, with classes in alphabetical order. Only training images are
    augmented, before they are normalised.

    Raises:
        UserError: naming `data.root`, or the file (and line) that is missing or wrong.
    """
    read = {"tiny-imagenet": _read_tiny_imagenet, "image-folder": _read_folder}.get(data.name, _read_torchvision)
    train, test, classes = read(data)
    prepared = preprocessing(data)
    images = augmented(images_of(prepared, *train), data)
    return Dataset(images, images_of(prepared, *test), Classes(len(classes)), classes=classes, preprocessing=prepared)


def augmented(images: Images, data: Data) -> Split:
    """The training images, augmented as the configuration says."""
    return Views.of(images) if data.augmentation == "views" else dataclasses.replace(images, augmentation=data.augmentation)


def load_test(data: Data, classes: Sequence[str], prepared: ImagePreprocessing) -> Split:
    """Read the test split alone, for a network that was trained on these classes with this preprocessing; raises like `load`."""
    if data.name == "image-folder":
        return images_of(prepared, *_read_held_out(_held_out(data), classes, "one of the run's"))
    read = {"tiny-imagenet": _read_tiny_imagenet}.get(data.name, _read_torchvision)
    _, test, names = read(data)
    if list(names) != list(classes):
        raise UserError(f"data.name: the classes of {data.name} are not those of the run")
    side = SIDES.get(data.name, prepared.height)
    if (len(STATISTICS[data.name][0]), side, side) != (prepared.channels, prepared.height, prepared.width):
        raise UserError(f"data.name: the images of {data.name} are of another size than those of the run")
    return images_of(prepared, *test)


def preprocessing(data: Data) -> ImagePreprocessing:
    """How an image becomes the input of a network that is trained on this data set; nothing is read for it."""
    mean, deviation = STATISTICS.get(data.name, STATISTICS["image-folder"])
    side = SIDES.get(data.name, data.image_size)
    return ImagePreprocessing(len(mean), side, side, tuple(mean), tuple(deviation))


def images_of(
    prepared: ImagePreprocessing, inputs: Tensor | Sequence[Any], labels: Tensor, kind: Callable[..., ImageFiles] = ImageFiles
) -> Images:
    """The split of images in memory, (N, C, H, W) uint8, or of such as this kind of images decodes."""
    mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in (prepared.mean, prepared.deviation))
    if isinstance(inputs, Tensor):
        return Images(inputs, labels, mean=mean, deviation=deviation)
    shape = (prepared.channels, prepared.height, prepared.width)
    return kind(inputs, labels, mean=mean, deviation=deviation, shape=shape, decoded=Decoded(len(inputs), shape))


# Training split and test split (images and labels each), and the names of the classes.
_Read = tuple[tuple[Tensor | list[str], Tensor], tuple[Tensor | list[str], Tensor], Sequence[str]]


def _read_torchvision(data: Data) -> _Read:
    from torchvision import datasets

    source = {
        "mnist": datasets.MNIST,
        "fashion-mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
    }[data.name]
    try:
        root = data.root or Path.home() / ".cache" / "alrpc"
    except RuntimeError as error:
        raise UserError(
            f"data.root: not given, and this user has no home directory for {data.name}; give a directory"
        ) from error
    splits = []
    for train in (True, False):
        try:
            split = source(root, train=train, download=True)
        except Exception as error:  # torchvision checks its files with assertions, among others
            raise UserError(f"data.root: no readable {data.name} in {root}, and no download: {_reason(error)}") from error
        images = torch.as_tensor(split.data)  # (N, H, W), or (N, H, W, C)
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        splits.append((images, torch.as_tensor(split.targets, dtype=torch.int64)))
    return *splits, split.classes


def _read_tiny_imagenet(data: Data) -> _Read:
    """Read the published folder. Its validation images are used for testing, since the labels of its test images are not public."""
    folders = [folder for folder in (data.root, data.root / "tiny-imagenet-200") if (folder / "wnids.txt").is_file()]
    if not folders:
        raise UserError(f"data.root: no tiny-imagenet-200/wnids.txt in {data.root}; unpack {TINY_IMAGENET} there")
    wnids, annotations = folders[0] / "wnids.txt", folders[0] / "val" / "val_annotations.txt"
    classes = {wnid: label for label, wnid in enumerate(sorted(read_text(wnids, LISTED).split()))}
    train = []
    for wnid, label in classes.items():
        folder = folders[0] / "train" / wnid / "images"
        files = sorted(str(file) for file in folder.glob("*.JPEG"))
        if not files:
            raise UserError(f"{folder}: no *.JPEG of class {wnid}, which wnids.txt lists; unpack {TINY_IMAGENET} again")
        train += [(file, label) for file in files]
    if not annotations.is_file():
        raise UserError(f"{annotations}: not there; unpack {TINY_IMAGENET} again")
    test = []
    for number, line in enumerate(read_text(annotations, LISTED).splitlines(), start=1):
        name, wnid = [*line.split("\t"), ""][:2]
        file = annotations.parent / "images" / name
        if wnid not in classes:
            raise UserError(f"{annotations}:{number}: class {wnid!r}; it must be one that {wnids} lists")
        if not file.is_file():
            raise UserError(f"{annotations}:{number}: no file {file}; unpack {TINY_IMAGENET} again")
        test.append((str(file), classes[wnid]))
    return _columns(train), _columns(test), list(classes)


def _read_folder(data: Data) -> _Read:
    """Read root/train/<class>/*, and root/test or else root/val, which has some or all of the same classes."""
    train = _image_folder(data.root / "train")
    tested = _read_held_out(_held_out(data), train.classes, f"one of {data.root / 'train'}")
    return _columns(train.samples), tested, train.classes


def _held_out(data: Data) -> Path:
    return next((data.root / name for name in ("test", "val") if (data.root / name).is_dir()), data.root / "test")


def _read_held_out(folder: Path, classes: Sequence[str], whose: str) -> tuple[list[str], Tensor]:
    """Read folder/<class>/*, with the indices that the training gave the classes.

    Args:
        whose: which classes these are, for the message about another one.
    """
    test = _image_folder(folder)
    index = {name: number for number, name in enumerate(classes)}
    strange = [name for name in test.classes if name not in index]
    if strange:
        raise UserError(f"{folder}: class {strange[0]} is not {whose}; test only what is trained")
    return _columns([(file, index[test.classes[label]]) for file, label in test.samples])


def _image_folder(folder: Path) -> ImageFolder:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(folder)
    except OSError as error:
        raise UserError(f"data.root: image-folder needs train/<class>/* and test/<class>/*: {_reason(error)}") from error


def _columns(samples: list[tuple[str, int]]) -> tuple[list[str], Tensor]:
    return [file for file, _ in samples], torch.tensor([label for _, label in samples], dtype=torch.int64)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
