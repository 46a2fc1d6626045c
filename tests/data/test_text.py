"""Texts: cleaning, vocabulary, files and their errors, the cache, padding and order."""

import csv
import json
import os
import pickle
import random
import time
from pathlib import Path

import pytest
import torch

import alrpc
from alrpc.config import Train
from alrpc.data import catalog, text, text_cache
from alrpc.data.loader import load_micro_batches, requests

pytest.importorskip("tokenizers")
from alrpc.data.tokenizer import cleaner, encode, learn_vocabulary

REVIEWS = [("A wonderful film, wonderful cast", "pos"), ("dreadful film; dull", "neg")] * 10


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "alrpc" / "text"


def write_csv(path, rows, header=("text", "label")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_json(path, rows):
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows), encoding="utf-8")
    return path


def load(path, **fields):
    return alrpc.load_data("text-file", file=path, **fields)


def refusal(path, **fields):
    with pytest.raises(alrpc.UserError) as error:
        load(path, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


def clean(text):
    tokenizer = cleaner()
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))]


def learn(texts, size=100):
    return learn_vocabulary(cleaner(), texts, size)


# Cleaning and vocabulary


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("Wonderful, WONDERFUL film!", ["wonderful", "wonderful", "film"]),
        ("plot.<br /><br />Acting <a href='x?a=1&b=2'>here</a>", ["plot", "acting"]),
        ("&lt;b&gt;bold&lt;/b&gt; &amp; Jerry&nbsp;Tom &#8212; #36;5 quot;hey", ["bold", "jerry", "tom", "5", "hey"]),
        ("don't don’t don&#39;t don #39;t", ["dont"] * 4),
        ("it was not the movie", ["movie"]),
        ("thereby therebyx xthereby", ["therebyx", "xthereby"]),
        ("snake_case café ÉTÉ\tnaïve\n5 < 6", ["snake", "case", "café", "été", "naïve", "5", "6"]),
        ("[PAD] [UNK]", ["pad", "unk"]),
    ],
)
def test_texts_are_cleaned(raw, words):
    assert clean(raw) == words


def test_every_stop_word_goes():
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    assert clean(" ".join(sorted(ENGLISH_STOP_WORDS))) == []


def test_the_most_frequent_words_of_the_training_texts_are_the_vocabulary(tmp_path):
    train = write_csv(tmp_path / "train.csv", [("apple apple apple pear pear plum", "a"), ("apple pear", "b")])
    test = write_csv(tmp_path / "test.csv", [("plum plum plum plum apple quince", "a")])
    dataset = load(train, test_file=test, vocabulary=4)
    assert dataset.train.batch(torch.tensor([0]))[0]["x"].tolist() == [[2, 2, 2, 3, 3, 1]]
    assert dataset.test.batch(torch.tensor([0]))[0]["x"].tolist() == [[1, 1, 1, 1, 2, 1]]


def test_the_vocabulary_does_not_depend_on_the_order_of_the_texts():
    texts = [" ".join(f"w{(i * 37 + j) % 500}" for j in range(5)) for i in range(1000)]  # almost all words tie
    vocabulary = learn(texts, 300).get_vocab()
    assert sorted(vocabulary.values()) == list(range(300))
    for seed in range(3):
        assert learn(random.Random(seed).sample(texts, len(texts)), 300).get_vocab() == vocabulary
    ties = learn(["pear apple plum"], 4).get_vocab()
    assert (ties["apple"], ties["pear"]) == (2, 3)


def test_a_text_that_speaks_of_padding_has_none():
    tokenizer = learn(["film [PAD] [UNK]"])
    tokens, _ = encode(tokenizer, ["[PAD] film [UNK]"], 10)
    assert tokens.min() > 1


def test_a_text_of_which_nothing_is_left_is_one_unknown_word():
    tokens, offsets = encode(learn(["film"]), ["the of !!!", "film film film", "<br/>"], 2)
    assert tokens.tolist() == [1, 2, 2, 1] and offsets.tolist() == [0, 1, 3, 4]


def test_the_saved_tokenizer_says_all(tmp_path, cache):
    from tokenizers import Tokenizer

    dataset = load(write_csv(tmp_path / "a.csv", REVIEWS))
    (file,) = cache.iterdir()
    tokenizer = Tokenizer.from_str(text_cache.read_cached(file)[1]["tokenizer"])
    encoded = tokenizer.encode("<b>A wonderful</b> film, wonderful cast").ids
    assert encoded in [dataset.train.batch(torch.tensor([i]))[0]["x"][0].tolist() for i in range(len(dataset.train))]


# Files and labels


@pytest.mark.parametrize(("name", "write"), [("a.csv", write_csv), ("a.jsonl", write_json), ("a.JSON", write_json)])
def test_a_share_of_each_class_is_held_back_always_the_same(tmp_path, cache, name, write):
    path = write(tmp_path / name, [(f"word{i} film", "pos" if i % 4 else "neg") for i in range(40)])
    dataset = load(path)
    assert dataset.target == alrpc.Classes(2)
    assert dataset.train.labels.bincount().tolist() == [8, 24] and dataset.test.labels.bincount().tolist() == [2, 6]
    for file in cache.iterdir():
        file.unlink()
    again = load(path)
    assert torch.equal(again.test.tokens, dataset.test.tokens) and torch.equal(again.train.tokens, dataset.train.tokens)
    assert len(load(path, test_share=0.5).test) == 20


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9", "-1", "9"], [2, 1, 0, 1]),
        (["10", "9", "x", "9"], [0, 1, 2, 1]),
        (["World", "Sport", "World", "Art"], [2, 1, 2, 0]),
    ],
)
def test_labels_become_class_indices_in_order(tmp_path, labels, expected):
    path = write_csv(tmp_path / "a.csv", [("film", label) for label in labels])
    dataset = load(path, test_file=path)
    assert dataset.test.labels.tolist() == expected and dataset.target.count == 3


def test_labels_of_json_may_be_numbers(tmp_path):
    path = write_json(tmp_path / "a.jsonl", [("film", 10), ("film", 9)])
    assert load(path, test_file=path).test.labels.tolist() == [1, 0]
    path = write_json(tmp_path / "b.jsonl", [("film", True), ("film", False)])
    assert load(path, test_file=path).test.labels.tolist() == [1, 0]


def test_columns_can_be_named_and_fields_be_long(tmp_path):
    path = write_csv(tmp_path / "a.csv", [("pos", "film " * 50_000, "x"), ("neg", "dull", "y")], ("stars", "review", "more"))
    dataset = load(path, test_file=path, text_column="review", label_column="stars")
    assert dataset.test.labels.tolist() == [1, 0]
    assert dataset.test.batch(torch.tensor([0]))[0]["x"].shape == (1, 128)
    assert csv.field_size_limit() == 131072


def test_a_file_as_excel_writes_it(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes('\ufefftext,label\r\n"two\r\nlines, café",a\r\n\r\nfilm,b\r\n'.encode())
    assert load(path, test_file=path).test.labels.tolist() == [0, 1]


def test_half_a_surrogate_pair_is_no_obstacle(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "film \\ud83d", "label": 0}\n{"text": "dull", "label": 1}\n')
    assert len(load(path, test_file=path).test) == 2


@pytest.mark.parametrize(
    ("name", "content", "place", "reason"),
    [
        ("a.csv", b"", 1, "no column 'text'; set data.text_column to one of: (none)"),
        ("a.csv", b"review,label\nfilm,a\n", 1, "no column 'text'; set data.text_column to one of: review, label"),
        ("a.csv", b"text,stars\nfilm,a\n", 1, "no column 'label'; set data.label_column to one of: text, stars"),
        ("a.csv", b'text,label\n"two\nlines",a\n"  ",b\n', 4, "text is '  '; it must be a text that is not empty"),
        ("a.csv", b'text,label\n"two\nlines",a\n"of\ntwo",\n', 4, "label is ''; it must be a label"),
        ("a.csv", b'text,label\n"two\nlines",a\n"of\ntwo"\nfilm,a\n', 4, "1 fields; it must have 2: text, label"),
        ("a.csv", b"text,label\nfilm,a\ndull, really,b\n", 3, "3 fields; it must have 2"),
        ("a.csv", b'text,label\nfilm,a\n"never\nclosed,a\nfilm,b\n', 3, "not CSV: unexpected end of data"),
        ("a.csv", b"text,label\nfilm,a\ncaf\xe9,b\n", 3, "not UTF-8"),
        ("a.csv", "text,label\n".encode("utf-16"), 1, "not UTF-8"),
        ("a.csv", b"text,label\n", None, "has no texts"),
        ("a.csv", b"text,label\nfilm,a\ndull,a\n", None, "every label is 'a'"),
        ("a.csv", b"text,label\nfilm,a\ndull,b\nfilm,a\n", 3, "no other text has the label 'b'"),
        ("a.jsonl", b'{"text": "film", "label": 0}\n\n{"text": "film"\n', 3, "not JSON: Expecting ',' delimiter"),
        ("a.jsonl", b'[{"text": "film", "label": 0}]\n', 1, "got a list; each line must be one JSON object"),
        (
            "a.jsonl",
            b'{"text": "film", "label": 0}\n{"text": "film", "stars": 0}\n',
            2,
            "no column 'label'; set data.label_column",
        ),
        ("a.jsonl", b'{"text": "film", "label": null}\n', 1, "label is null"),
        ("a.jsonl", b'{"text": "film", "label": 0.5}\n', 1, "label is 0.5; it must be a label, a name or an integer"),
        ("a.jsonl", b'{"text": 7, "label": 0}\n', 1, "text is 7; it must be a text"),
        ("a.jsonl", b'{"text": "film", "label": 0}\n{"text": "\xff", "label": 0}\n', 2, "not UTF-8"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, name, content, place, reason):
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    assert message.startswith(f"{path}:{place}: " if place else f"{path}: ") and reason in message


def test_a_test_label_never_trained_on_is_named(tmp_path):
    train = write_csv(tmp_path / "train.csv", [("film", "pos"), ("dull", "neg")])
    test = write_csv(tmp_path / "test.csv", [("film", "pos"), ("dull", "bad")])
    assert refusal(train, test_file=test) == (f"{test}:3: label 'bad' is not in {train}; use one of those trained on: neg, pos")


def test_a_share_too_small_is_refused(tmp_path):
    path = write_csv(tmp_path / "a.csv", [("film", i % 4) for i in range(8)])
    assert "data.test_share: 0.2 of 8 texts with 4 labels" in refusal(path)


def test_fields_are_checked_before_anything_is_read(tmp_path, monkeypatch):
    path = write_csv(tmp_path / "a.csv", REVIEWS)
    with pytest.raises(alrpc.UserError, match=r"data\.file: not given, but needed by text-file"):
        alrpc.load_data("text-file")
    assert "data.file: no file" in refusal(tmp_path / "absent.csv")
    assert "data.test_file: no file" in refusal(path, test_file=tmp_path / "absent.csv")
    assert "it must end in .csv" in refusal(tmp_path / "a.txt")
    assert "data.word_vectors: no file" in refusal(path, word_vectors=tmp_path / "absent.txt")
    with pytest.raises(alrpc.UserError, match=r"data\.file: got .*, but imdb reads no file"):
        alrpc.load_data("imdb", file=path)
    monkeypatch.setattr(catalog, "find_spec", lambda package: None)
    assert "needs the extra: pip install 'alrpc[text]'" in refusal(path)


# Cache


def test_texts_are_prepared_once(tmp_path, cache, monkeypatch):
    path = write_csv(tmp_path / "a.csv", REVIEWS)
    first = load(path)
    (file,) = cache.iterdir()
    monkeypatch.setattr(text, "read_records", lambda *_: pytest.fail("the file was read again"))
    second = load(path, bucket=True)
    for a, b in ((first.train, second.train), (first.test, second.test)):
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.inputs, b.inputs) and torch.equal(a.labels, b.labels)
    assert second.target == first.target and list(cache.iterdir()) == [file]


def test_a_changed_file_is_noticed_even_if_its_time_is_not(tmp_path):
    path = write_csv(tmp_path / "a.csv", REVIEWS)
    stamp = path.stat().st_mtime_ns
    load(path)
    write_csv(path, [("dull dull dull", "pos"), ("film film film", "neg")] * 10)
    os.utime(path, ns=(stamp, stamp))
    assert set(load(path).train.tokens.tolist()) == {2, 3}


@pytest.mark.parametrize(
    "fields", [{"vocabulary": 3}, {"max_tokens": 2}, {"test_share": 0.5}, {"text_column": "label", "label_column": "text"}]
)
def test_a_changed_field_is_noticed(tmp_path, cache, fields):
    path = write_csv(tmp_path / "a.csv", REVIEWS)
    load(path)
    load(path, **fields)
    assert len(list(cache.iterdir())) == 2


def test_a_changed_test_file_is_noticed(tmp_path):
    path = write_csv(tmp_path / "a.csv", REVIEWS)
    test = write_csv(tmp_path / "b.csv", REVIEWS[:2])
    assert len(load(path, test_file=test).test) == 2
    write_csv(test, REVIEWS[:4])
    assert len(load(path, test_file=test).test) == 4


@pytest.mark.parametrize("damage", ["cut", "zeros", "garbage", "empty"])
def test_a_damaged_cache_is_made_anew(tmp_path, cache, damage):
    path = write_csv(tmp_path / "a.csv", REVIEWS)
    good = load(path)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    bad = {"cut": content[:-8], "zeros": content[:-8] + bytes(8), "garbage": b"x" * 100, "empty": b""}[damage]
    assert bad != content
    file.write_bytes(bad)
    assert text_cache.read_cached(file) is None
    assert torch.equal(load(path).train.tokens, good.train.tokens)
    assert text_cache.read_cached(file) is not None and list(cache.iterdir()) == [file]


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file is no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load(write_csv(tmp_path / "a.csv", REVIEWS)).train) == 16


# Micro-batches


@pytest.fixture
def lengths(tmp_path):
    """1,000 texts of 1 to 100 words."""
    chance = random.Random(0)
    rows = [(" ".join(["film"] * chance.randint(1, 100)), i % 2) for i in range(1250)]
    return write_csv(tmp_path / "lengths.csv", rows)


def test_a_micro_batch_is_padded_to_its_longest_text(tmp_path):
    path = write_csv(tmp_path / "a.csv", [("film", 0), ("dull film film", 1), ("film " * 9, 0), ("of the", 1)])
    split = load(path, test_file=path, max_tokens=5).test
    tensors, labels = split.batch(torch.tensor([1, 0, 3]))
    assert tensors["x"].tolist() == [[3, 2, 2], [2, 0, 0], [1, 0, 0]] and tensors["x"].dtype == torch.int64
    assert tensors["mask"].tolist() == [[True] * 3, [True, False, False], [True, False, False]]
    assert labels.tolist() == [1, 0, 1]
    tensors, _ = split.batch(torch.tensor([2]))
    assert tensors["x"].tolist() == [[2] * 5] and tensors["mask"].all()


def padding(split, order, size):
    return sum(int((~split.batch(indices)[0]["mask"]).sum()) for indices in order.split(size))


def test_bucketing_puts_texts_of_similar_length_together(lengths):
    plain, bucketed = load(lengths).train, load(lengths, bucket=True).train
    order = bucketed.order(1, 2, 48)
    assert sorted(order.tolist()) == list(range(1000))
    assert torch.equal(order, bucketed.order(1, 2, 48))
    assert not torch.equal(order, bucketed.order(1, 3, 48)) and not torch.equal(order, bucketed.order(2, 2, 48))
    assert padding(bucketed, order, 48) < 0.2 * padding(plain, plain.order(1, 2, 48), 48)
    ranks = set()  # of the micro-batches by length
    for seed, epoch in ((1, 2), (1, 3), (2, 2)):
        *full, last = bucketed.order(seed, epoch, 48).split(48)
        assert len(last) == 1000 % 48
        ranks.add(tuple(torch.tensor([bucketed.batch(indices)[0]["x"].shape[1] for indices in full]).argsort().tolist()))
    assert len(ranks) == 3 and tuple(range(20)) not in ranks
    assert sorted(bucketed.order(1, 2, 2000).tolist()) == list(range(1000))  # one small micro-batch


def test_worker_processes_read_the_same_texts(lengths):
    dataset = load(lengths, bucket=True)
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).train.tokens, dataset.train.tokens)
    here, there = (
        list(load_micro_batches(dataset, requests(dataset, 400, Train(seed=1, epochs=1)), 1, workers)) for workers in (0, 1)
    )
    assert len(here) == len(there) == 4
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.tensors["x"], b.tensors["x"]) and torch.equal(a.tensors["mask"], b.tensors["mask"])


def test_a_micro_batch_takes_little_time(lengths):
    split = load(lengths).train
    indices = torch.arange(256)
    split.batch(indices)
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        split.batch(indices)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.01  # a loop over tokens takes more


# Public data sets


def hub(monkeypatch, column, splits):
    """Stand in for the download; returns what it was asked for."""
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, cache_dir=None):
        asked.append((name, cache_dir))
        rows = {
            split: datasets.Dataset.from_dict(
                {column: [text for text, _ in of_split], "label": [label for _, label in of_split]}
            )
            for split, of_split in splits.items()
        }
        return datasets.DatasetDict(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize(
    ("name", "source", "column"),
    [
        ("ag_news", "fancyzhx/ag_news", "text"),
        ("dbpedia_14", "fancyzhx/dbpedia_14", "content"),
        ("imdb", "stanfordnlp/imdb", "text"),
        ("sst2", "stanfordnlp/sst2", "sentence"),
    ],
)
def test_public_data_sets_are_read(tmp_path, cache, monkeypatch, name, source, column):
    splits = {"train": [("good film", 1), ("dull film", 0)] * 2, "test": [("film", 1)], "validation": [("dull", 0)]}
    if name == "sst2":
        splits["test"] = [("film", -1)]
    asked = hub(monkeypatch, column, splits)
    dataset = alrpc.load_data(name, root=tmp_path)
    assert asked == [(source, str(tmp_path))] and dataset.target == alrpc.Classes(2)
    assert dataset.train.labels.tolist() == [1, 0, 1, 0] and dataset.test.labels.tolist() == [0 if name == "sst2" else 1]
    assert dataset.train.batch(torch.tensor([0, 1]))[0]["x"].tolist() == [[4, 2], [3, 2]]
    alrpc.load_data(name)
    assert asked[1] == (source, None) and len(list(cache.iterdir())) == 1
    splits["train"].append(("another", 0))
    assert len(alrpc.load_data(name).train) == 5


def test_no_network_is_told_in_a_line(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach\n the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(alrpc.UserError, match=r"^data\.name: ag_news .*Couldn't reach the Hub; .*text-file reads a local file"):
        alrpc.load_data("ag_news")


# Word vectors


def test_word_vectors_are_found_for_the_vocabulary(tmp_path):
    path = write_csv(tmp_path / "a.csv", [("film film film dull dull cast", 0), ("film", 1)])
    vectors = tmp_path / "vectors.txt"
    vectors.write_text(
        "the 0 0\n. . . 9 9\ncast 1.5 -2e-1\nat name@x.org 9 9\n[PAD] 9 9\nfilm 3 4 \nfilm 5 6\n\n", encoding="utf-8"
    )
    found = load(path, test_file=path, word_vectors=vectors).word_vectors
    assert found.rows.tolist() == [2, 4] and found.rows.dtype == torch.int64
    assert torch.equal(found.values, torch.tensor([[3, 4], [1.5, -0.2]]))
    assert load(path, test_file=path).word_vectors is None


@pytest.mark.parametrize(
    ("content", "place", "reason"),
    [
        ("the 0 0\nfilm 1 x\n", 2, "'x' is no number"),
        ("the 0 0\nfilm 1 nan\n", 2, "'nan' is no number"),
        ("the 0 0\nfilm 1 2 3\n", 2, "a word and 3 numbers"),
        ("the 0 0\n\nfilm 1\n", 3, "a word and 1 numbers"),
        ("2 3\nfilm 1 2 3\n", 2, "line 1, which has 1 (remove a header)"),
        ("film\n", 1, "a word and 0 numbers"),
    ],
)
def test_wrong_word_vectors_are_named_with_their_line(tmp_path, content, place, reason):
    path = write_csv(tmp_path / "a.csv", REVIEWS)
    vectors = tmp_path / "vectors.txt"
    vectors.write_text(content)
    message = refusal(path, word_vectors=vectors)
    assert message.startswith(f"{vectors}:{place}: ") and reason in message


def test_word_vectors_of_other_words_are_refused(tmp_path):
    path = write_csv(tmp_path / "a.csv", REVIEWS)
    for content in ("Quince 1 2\n", ""):
        (tmp_path / "vectors.txt").write_text(content)
        assert "has none of the vocabulary's words" in refusal(path, word_vectors=tmp_path / "vectors.txt")


@pytest.mark.skipif("ALRPC_DATA" not in os.environ, reason="ALRPC_DATA names no folder with text/imdb.csv")
def test_imdb_is_split_in_balance():
    dataset = load(Path(os.environ["ALRPC_DATA"]) / "text" / "imdb.csv", max_tokens=256)
    assert dataset.train.labels.bincount().tolist() == [10_000, 10_000]
    assert dataset.test.labels.bincount().tolist() == [2_500, 2_500]
    assert int(dataset.train.tokens.min()) > 0 and int(dataset.train.tokens.max()) == 29_999
    assert 80 < dataset.train.inputs.diff(dim=1).float().mean() < 120
