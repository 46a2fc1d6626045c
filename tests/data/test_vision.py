"""Images: what is read, what becomes of the pixels, and that augmentation is a function of seed, epoch and sample."""

import dataclasses
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

import alrpc
from alrpc.config import Train
from alrpc.data.loader import load_micro_batches, requests


def save_image(path: Path, colour: tuple[int, int, int], size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)


def save_noise(path: Path, seed: int, size: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """An image folder of two classes: 12 images to train on, 4 to test on, all different."""
    for number in range(12):
        save_noise(tmp_path / "train" / ("cat", "dog")[number % 2] / f"{number}.png", number)
    for number in range(4):
        save_noise(tmp_path / "test" / ("cat", "dog")[number % 2] / f"{number}.png", 100 + number)
    return tmp_path


def seen(dataset: alrpc.Dataset, indices: list[int], seed: int = 1, epoch: int = 0) -> torch.Tensor:
    """Training images as a run sees them."""
    return dataset.train.during(seed, epoch).batch(torch.tensor(indices))[0]["x"]


def in_memory(channels: int, augmentation: str) -> alrpc.Dataset:
    """A data set of random images 28 × 28, as MNIST and CIFAR are held."""
    from alrpc.data.vision import Images

    images = torch.randint(0, 256, (20, channels, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    train = Images(
        images,
        torch.zeros(20, dtype=torch.int64),
        mean=torch.zeros(channels, 1, 1),
        deviation=torch.full((channels, 1, 1), 1 / 255),
        augmentation=augmentation,
    )
    return alrpc.Dataset(train, dataclasses.replace(train, augmentation="none"), alrpc.Classes(2))


@pytest.mark.parametrize("augmentation", ["basic", "strong"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_draw_is_a_function_of_seed_epoch_and_sample(channels, augmentation):
    dataset = in_memory(channels, augmentation)
    everything = seen(dataset, list(range(20)))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(seen(dataset, [7, 3, 11]), everything[[7, 3, 11]])  # in another micro-batch, another past
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(seen(dataset, list(range(20)), seed=2), everything)
    assert not torch.equal(seen(dataset, list(range(20)), epoch=1), everything)
    alike = dataclasses.replace(dataset.train, inputs=dataset.train.inputs[:1].expand(20, -1, -1, -1))
    drawn = alike.during(1, 0).batch(torch.arange(20))[0]["x"]
    assert len({image.numpy().tobytes() for image in drawn}) >= 15  # the same image 20 times, each changed in its own way


def test_basic_moves_and_mirrors_and_strong_changes_colours_too():
    original, basic, strong = (
        seen(in_memory(3, augmentation), list(range(20))).round() for augmentation in ("none", "basic", "strong")
    )
    assert torch.equal(original, in_memory(3, "none").train.inputs.float())

    def moved(image, changed):
        padded = torch.nn.functional.pad(image, (3, 3, 3, 3))  # 28 // 8
        crops = [padded[:, y : y + 28, x : x + 28] for y in range(7) for x in range(7)]
        return any(torch.equal(changed, crop) or torch.equal(changed.flip(2), crop) for crop in crops)

    assert all(map(moved, original, basic))
    assert 10 <= sum(not moved(*pair) for pair in zip(original, strong, strict=True)) < 20  # 84 % of them on average
    gray = sum(torch.equal(image[0], image[1]) and torch.equal(image[0], image[2]) for image in strong)
    assert 1 <= gray <= 10  # 20 % on average


def test_views_pair_a_basic_and_a_strong_view_of_every_image_of_a_micro_batch():
    from alrpc.data.vision import Views

    dataset = in_memory(3, "none")
    views = Views.of(dataset.train)
    assert len(views) == 40
    micro_batches = views.order(1, 0, 6).split(6)
    assert [len(each) for each in micro_batches] == [6, 6, 6, 6, 6, 6, 4]
    assert all(torch.equal(first + 20, second) for first, second in (each.chunk(2) for each in micro_batches))
    assert sorted(views.order(1, 0, 6).tolist()) == list(range(40))
    tensors, labels = views.during(1, 0).batch(micro_batches[0])
    weak, strong = tensors["x"].chunk(2)
    assert torch.equal(weak, seen(in_memory(3, "basic"), micro_batches[0][:3].tolist())) and labels.shape == (6,)
    assert not torch.equal(strong, seen(in_memory(3, "strong"), micro_batches[0][:3].tolist()))  # other draws
    share = views.during(1, 0).batch(micro_batches[0][2:4])[0]["x"]  # in another process, without the rest
    assert torch.equal(share, tensors["x"][2:4])


def test_views_of_an_odd_micro_batch_are_refused(folder):
    with pytest.raises(alrpc.UserError, match=r"data.batch_size: got 5, but views pairs the samples"):
        alrpc.load_data("image-folder", root=folder, image_size=16, augmentation="views", batch_size=5)


def test_worker_processes_augment_alike(folder):
    dataset = alrpc.load_data("image-folder", root=folder, image_size=16, augmentation="strong")
    here, there = (
        list(load_micro_batches(dataset, requests(dataset, 5, Train(seed=1, epochs=2)), seed=1, workers=workers))
        for workers in (0, 2)
    )
    assert len(here) == len(there) == 8
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.tensors["x"], b.tensors["x"]) and torch.equal(a.labels, b.labels)


def test_only_training_images_are_augmented(folder):
    plain = alrpc.load_data("image-folder", root=folder, image_size=16)
    strong = alrpc.load_data("image-folder", root=folder, image_size=16, augmentation="strong")
    everything = torch.arange(4)
    assert torch.equal(strong.test.during(1, 0).batch(everything)[0]["x"], plain.test.batch(everything)[0]["x"])
    assert torch.equal(strong.sample["x"], plain.sample["x"])
    assert not torch.equal(seen(strong, [0, 1, 2, 3]), seen(plain, [0, 1, 2, 3]))


def test_an_image_folder_is_resized_and_normalised(tmp_path):
    save_image(tmp_path / "train" / "red" / "a.png", (255, 0, 0))
    save_image(tmp_path / "train" / "red" / "b.bmp", (255, 0, 0), size=40)
    save_image(tmp_path / "train" / "blue" / "c.jpg", (0, 0, 255))
    Image.new("L", (9, 5), 128).save(tmp_path / "train" / "blue" / "gray.png")
    save_image(tmp_path / "val" / "red" / "d.png", (255, 255, 255))  # blue is never tested
    dataset = alrpc.load_data("image-folder", root=tmp_path, image_size=12)
    assert dataset.target == alrpc.Classes(2)
    assert dataset.train.labels.tolist() == [0, 0, 1, 1] and dataset.test.labels.tolist() == [1]
    x = dataset.train.batch(torch.arange(4))[0]["x"]
    assert x.shape == (4, 3, 12, 12) and x.dtype == torch.float32
    red = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]).view(3, 1, 1).expand(3, 12, 12)
    assert torch.allclose(x[2], red) and torch.allclose(x[3], red)


def test_an_image_folder_that_does_not_fit_is_refused(folder):
    with pytest.raises(alrpc.UserError, match=r"data\.root: not given; image-folder"):
        alrpc.load_data("image-folder")
    with pytest.raises(alrpc.UserError, match=r"data\.root: image-folder needs train/<class>.*No such file.*train"):
        alrpc.load_data("image-folder", root=folder / "train")
    save_noise(folder / "test" / "wolf" / "0.png", 0)
    with pytest.raises(alrpc.UserError, match="class wolf is not one of"):
        alrpc.load_data("image-folder", root=folder)


@pytest.mark.parametrize("fits", [True, False])
def test_an_image_is_decoded_once_if_the_split_fits_into_memory(folder, monkeypatch, fits):
    if not fits:
        monkeypatch.setattr("alrpc.data.decoded.LARGEST", 12 * 3 * 16 * 16 - 1)
    dataset = alrpc.load_data("image-folder", root=folder, image_size=16, augmentation="basic")
    first, later = seen(dataset, [0, 5, 11]), seen(dataset, [0, 5, 11], epoch=1)
    (folder / "train" / "cat" / "0.png").unlink()
    elsewhere = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(dataset)) < 5000  # a process that reads data is not sent the images
    with pytest.raises(alrpc.UserError, match=r"cat.0\.png"):
        seen(elsewhere, [0])
    if fits:
        assert torch.equal(seen(dataset, [0, 5, 11]), first) and torch.equal(seen(dataset, [0, 5, 11], epoch=1), later)
    else:
        with pytest.raises(alrpc.UserError, match=r"cat.0\.png"):
            seen(dataset, [0])


def test_a_damaged_image_is_named(folder):
    broken = folder / "train" / "cat" / "0.png"
    broken.write_bytes(broken.read_bytes()[:200])
    dataset = alrpc.load_data("image-folder", root=folder)
    with pytest.raises(alrpc.UserError, match=r"cat.0\.png: not a readable image") as caught:
        dataset.train.batch(torch.tensor([0]))
    assert "\n" not in str(caught.value)


@pytest.fixture
def tiny_imagenet(tmp_path):
    """The published archive's layout: two classes, listed out of order, in colours that tell them apart."""
    root = tmp_path / "tiny-imagenet-200"
    for wnid, colour in (("n01", (200, 0, 0)), ("n02", (0, 0, 200))):
        for number in range(3):
            save_image(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", colour, size=64)
    save_image(root / "val" / "images" / "val_0.JPEG", (0, 0, 200), size=64)
    save_image(root / "val" / "images" / "val_1.JPEG", (200, 0, 0), size=64)
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t62\t62\nval_1.JPEG\tn01\t0\t0\t62\t62\n")
    return root


def test_tiny_imagenet_is_read_from_its_archive(tiny_imagenet):
    for root in (tiny_imagenet, tiny_imagenet.parent):
        dataset = alrpc.load_data("tiny-imagenet", root=root)
        assert dataset.target == alrpc.Classes(2)
        assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and dataset.test.labels.tolist() == [1, 0]
        for split in (dataset.train, dataset.test):
            x, labels = split.batch(torch.arange(len(split)))
            assert x["x"].shape == (len(split), 3, 32, 32)
            blue = x["x"][:, 2].mean((1, 2)) > x["x"][:, 0].mean((1, 2))
            assert blue.tolist() == labels.bool().tolist()  # n01 is red, n02 is blue
    assert alrpc.load_data("tiny-imagenet", root=tiny_imagenet, image_size=64).sample["x"].shape == (1, 3, 64, 64)


def test_what_is_wrong_with_tiny_imagenet_is_named(tiny_imagenet):
    with pytest.raises(alrpc.UserError, match=r"data\.root: not given; tiny-imagenet .*tiny-imagenet-200\.zip"):
        alrpc.load_data("tiny-imagenet")
    with pytest.raises(alrpc.UserError, match=r"data\.root: no .*wnids\.txt .*tiny-imagenet-200\.zip"):
        alrpc.load_data("tiny-imagenet", root=tiny_imagenet / "val")
    annotations = tiny_imagenet / "val" / "val_annotations.txt"
    right = annotations.read_text()
    for line, message in (
        ("val_2.JPEG\tn01\t0\t0\t1\t1", r"val_annotations\.txt:3: no file .*val_2\.JPEG"),
        ("val_1.JPEG\tn99\t0\t0\t1\t1", r"val_annotations\.txt:3: class 'n99'"),
        ("val_1.JPEG", r"val_annotations\.txt:3: class ''"),
    ):
        annotations.write_text(right + line + "\n")
        with pytest.raises(alrpc.UserError, match=message):
            alrpc.load_data("tiny-imagenet", root=tiny_imagenet)
    annotations.unlink()
    with pytest.raises(alrpc.UserError, match=r"val_annotations\.txt: not there"):
        alrpc.load_data("tiny-imagenet", root=tiny_imagenet)
    (tiny_imagenet / "wnids.txt").write_text("n01\nn02\nn03\n")
    with pytest.raises(alrpc.UserError, match=r"no .*JPEG of class n03"):
        alrpc.load_data("tiny-imagenet", root=tiny_imagenet)


@pytest.mark.parametrize(
    ("name", "source", "statistics"),
    [("cifar10", datasets.CIFAR10, (0.4914, 0.2470)), ("cifar100", datasets.CIFAR100, (0.5071, 0.2673))],
)
def test_cifar_is_read_and_normalised_by_channel(name, source, statistics, tmp_path, monkeypatch):
    def save(file, content):
        (tmp_path / source.base_folder).mkdir(exist_ok=True)
        (tmp_path / source.base_folder / file).write_bytes(pickle.dumps(content))

    generator = np.random.default_rng(0)
    key = "labels" if name == "cifar10" else "fine_labels"
    parts = {
        file: {"data": generator.integers(0, 256, (4, 3072), dtype=np.uint8), key: [3, 1, 0, 9]}
        for file, _ in source.train_list + source.test_list
    }
    for file, content in parts.items():
        save(file, content)
    save(source.meta["filename"], {source.meta["key"]: [f"class {number}" for number in range(10)]})
    monkeypatch.setattr(source, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)

    dataset = alrpc.load_data(name, root=tmp_path)
    published = np.concatenate([parts[file]["data"] for file, _ in source.train_list]).reshape(-1, 3, 32, 32)
    assert len(dataset.train) == len(published) and dataset.test.labels.tolist() == [3, 1, 0, 9]
    assert dataset.train.labels.dtype == torch.int64 and dataset.target == alrpc.Classes(10)
    x, _ = dataset.train.batch(torch.tensor([2, 0]))
    assert x["x"].shape == (2, 3, 32, 32) and x["x"].dtype == torch.float32
    mean, deviation = statistics
    red = (torch.tensor(published[[2, 0], 0]).to(torch.float32) / 255 - mean) / deviation
    assert torch.allclose(x["x"][:, 0], red)


def test_data_that_can_be_neither_read_nor_downloaded_is_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route\nto host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    with pytest.raises(alrpc.UserError, match=r"data\.root: no readable cifar10 in .*no route to host") as caught:
        alrpc.load_data("cifar10", root=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif("ALRPC_DATA" not in os.environ, reason="ALRPC_DATA names no folder with MNIST")
def test_mnist_is_kept_as_bytes_and_normalised_in_a_micro_batch():
    dataset = alrpc.load_data("mnist", root=Path(os.environ["ALRPC_DATA"]), augmentation="strong")
    assert dataset.train.inputs.shape == (60000, 1, 28, 28) and dataset.train.inputs.dtype == torch.uint8
    x, labels = dataset.test.batch(torch.arange(10000))
    expected = dataset.test.inputs.to(torch.float32).div_(255).sub_(0.1307).div_(0.3081)
    assert torch.equal(x["x"], expected) and torch.bincount(labels).min() > 800
    assert seen(dataset, [0, 1]).shape == (2, 1, 28, 28)


def test_images_that_are_held_out_are_those_of_their_own_files(folder):
    whole = alrpc.load_data("image-folder", root=folder, image_size=16)
    held = alrpc.load_data("image-folder", root=folder, image_size=16, validation=0.5)
    images = {file: whole.train.batch(torch.tensor([row]))[0]["x"][0] for row, file in enumerate(whole.train.inputs)}
    for split in (held.train, held.validation):  # in turn, since each keeps what it has decoded
        batch, _ = split.batch(torch.arange(len(split)))
        for row in range(len(split)):
            assert torch.equal(batch["x"][row], images[split.inputs[row]])
