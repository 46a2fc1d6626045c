"""The section `data` of a configuration: which data set, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from alrpc.config.section import Section

HUB = "hf:"
"""What the name of a data set of Hugging Face begins with: a path, or a name on the hub, follows."""


class Data(Section):
    name: str = "digits"
    """digits; mnist, fashion-mnist, cifar10, cifar100, tiny-imagenet, image-folder; ag_news, dbpedia_14, imdb, sst2, text-file;
    npz, parquet, or hf:NAME for a data set of Hugging Face, by its path or its name on the hub; synthetic-text (random words, for
    measuring speed); or package.module:function for a function of your own that returns an alrpc.Dataset. A run of `alrpc.train` has
    python."""
    root: Path | None = None
    """Directory that holds the data or into which it is downloaded; null for ~/.cache/alrpc."""
    batch_size: PositiveInt = 64
    """Samples in a micro-batch, in training and in evaluation."""
    validation: float = Field(0.0, ge=0, lt=1)
    """Share of the training split, of each class, that is held out for validation, a function of train.seed alone; 0 for none.
    It is evaluated after every epoch in place of the test split, which then is evaluated once, at the end: see checkpoint.best."""
    workers: NonNegativeInt = 0
    """Processes that read and augment micro-batches ahead; 0 to do it in the process that feeds them."""
    augmentation: Literal["none", "basic", "strong", "views"] = "none"
    """Augmentation of training images; basic: random crop and horizontal flip; strong: also colour jitter and random grayscale; views:
    each image is in a micro-batch twice, once basic and once strong, and counts as two samples, of batch_size too, as in SCPL."""
    image_size: PositiveInt = 32
    """Height and width to which the images of tiny-imagenet, image-folder, hf and parquet are resized."""
    file: Path | None = None
    """text-file (CSV or JSON lines), npz and parquet: the file to train on, and to test on if there is no test_file."""
    test_file: Path | None = None
    """The same: the file to test on; null to hold back test_share of `file`."""
    subset: str | None = None
    """hf: the name of one of the data sets that NAME has, such as sst2 of nyu-mll/glue; null for its only one."""
    train_split: str = "train"
    """hf: the split to train on."""
    test_split: str | None = None
    """hf: the split to test on; null for the one named test, and if there is none, for test_share of the training split."""
    test_share: float = Field(0.2, gt=0, lt=1)
    """text-file, npz, parquet, hf: share of each class that is held back for testing when there is nothing else to test on."""
    text_column: str = "text"
    """text-file: the column (CSV) or key (JSON lines) of the text."""
    columns: list[str] = []  # noqa: RUF012
    """npz, parquet, hf: the columns, or arrays, of the input: one of texts, of images or of arrays, or several of numbers, which are
    put one after another; [] for all but the label's."""
    label_column: str = "label"
    """text-file, npz, parquet, hf: the column, key or array of the label: a name or a whole number for a class; several of 0 and 1, as
    whole numbers or booleans, for labels of which a sample may have any number; floats, one or several, are values, which a regression
    learns."""
    vocabulary: int = Field(30_000, ge=3)
    """Text: size of the vocabulary: the most frequent words of the training texts, plus padding and the unknown word."""
    max_tokens: PositiveInt = 128
    """Text: number of words after which a text is truncated."""
    bucket: bool = False
    """Text: put texts of similar length into one micro-batch, which reduces padding."""
    word_vectors: Path | None = None
    """Text: a file of word vectors in GloVe's format (a word and its numbers on each line) that initializes the embedding."""

    @property
    def is_own(self) -> bool:
        """Whether the data set comes from a function of the user's own."""
        return ":" in self.name and not self.name.startswith(HUB)
