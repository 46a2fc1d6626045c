"""Small data sets on disk, in the layouts that users have: images in folders by class, texts with labels."""

import json
import random
from pathlib import Path

import torch
from torchvision.transforms.v2.functional import to_pil_image


def write_images(root: Path, train: int = 24, test: int = 8, side: int = 16) -> Path:
    """A class brighter at the top and one brighter at the bottom, noise on both."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", train), ("test", test)):
        for label in ("bottom", "top"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                image = torch.randint(0, 120, (3, side, side), dtype=torch.uint8, generator=generator)
                image[:, slice(0, side // 2) if label == "top" else slice(side // 2, side)] += 120
                to_pil_image(image).save(folder / f"{number}.png")
    return root


def write_texts(path: Path, count: int = 150) -> Path:
    """JSON lines: texts of 2 to 14 words, most of them of their class."""
    draw = random.Random(0)
    words = {"good": ["lovely", "bright", "sweet", "warm"], "bad": ["awful", "dark", "bitter", "cold"]}
    with path.open("w") as file:
        for number in range(count):
            label = ("good", "bad")[number % 2]
            other = ("good", "bad")[(number + 1) % 2]
            text = [draw.choice(words[label if draw.random() < 0.8 else other]) for _ in range(draw.randint(2, 14))]
            file.write(json.dumps({"text": " ".join(text), "label": label}) + "\n")
    return path
