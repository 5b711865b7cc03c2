"""Where sources lie, and which files of a data set hold a split."""

from pathlib import PurePosixPath

import pytest

from bot.calibration.sources import local_path, split_files, suffix_of
from bot.errors import QuantizationError, WatchlistError
from bot.records import TextSource

ULTRACHAT = (
    ".gitattributes",
    "README.md",
    "data/test_gen-00000-of-00001-3d4cd8309148a71f.parquet",
    "data/test_sft-00000-of-00001-f7dfac4afe5b93f4.parquet",
    "data/train_gen-00000-of-00003-a6c9fb894be3e50b.parquet",
    "data/train_sft-00001-of-00003-f59bd7f8b8c1a0b2.parquet",
    "data/train_sft-00000-of-00003-a3ecf92756993583.parquet",
)
WIKITEXT = (
    "README.md",
    "wikitext-103-raw-v1/train-00000-of-00002.parquet",
    "wikitext-103-raw-v1/train-00001-of-00002.parquet",
    "wikitext-2-raw-v1/test-00000-of-00001.parquet",
    "wikitext-2-raw-v1/train-00000-of-00001.parquet",
)
CONVERTED = ("default/test/0000.parquet", "default/train/0000.parquet", "default/train/0001.parquet")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (TextSource(builtin="stdlib"), None),
        (TextSource(file="texts/notes.txt", sha256="ab12"), "ab12.txt"),
        (TextSource(file="chat.JSONL.gz", sha256="ab12"), "ab12.jsonl.gz"),
        (TextSource(file="texts/notes.txt"), "texts/notes.txt"),
        (TextSource(file="/home/me/notes.txt"), "/home/me/notes.txt"),
        (TextSource(dataset="Salesforce/wikitext", revision="b08601e0"), "Salesforce--wikitext@b08601e0"),
        (TextSource(dataset="squad", revision="refs/convert/parquet"), "squad@refs--convert--parquet"),
    ],
)
def test_every_kind_of_source_has_its_place(source: TextSource, expected: str | None) -> None:
    assert local_path(source) == (None if expected is None else PurePosixPath(expected))


def test_a_data_set_without_revision_is_refused() -> None:
    with pytest.raises(QuantizationError, match="Salesforce/wikitext has no revision"):
        local_path(TextSource(dataset="Salesforce/wikitext"))


@pytest.mark.parametrize(
    ("paths", "split", "expected"),
    [
        (ULTRACHAT, "train_sft", (ULTRACHAT[6], ULTRACHAT[5])),
        (ULTRACHAT, "data/train_sft", (ULTRACHAT[6], ULTRACHAT[5])),
        (ULTRACHAT, "train", ()),
        (WIKITEXT, "test", (WIKITEXT[3],)),
        (WIKITEXT, "wikitext-2-raw-v1/train", (WIKITEXT[4],)),
        (WIKITEXT, "wikitext-103-raw-v1/train", WIKITEXT[1:3]),
        (CONVERTED, "train", CONVERTED[1:]),
        (CONVERTED, "default/train", CONVERTED[1:]),
        (("train.jsonl", "test.jsonl", "train.csv"), "train", ("train.jsonl",)),
        (("my-set-train.jsonl.gz", "my-set-test.jsonl.gz"), "train", ("my-set-train.jsonl.gz",)),
        (("en/c4-train.00000-of-01024.jsonl.gz",), "train", ("en/c4-train.00000-of-01024.jsonl.gz",)),
        (("b.parquet", "a.jsonl", "README.md"), None, ("a.jsonl", "b.parquet")),
        (("constrain.jsonl", "train_gen.jsonl", "pretrain.jsonl"), "train", ()),
        ((), "train", ()),
    ],
)
def test_a_split_is_found_by_the_names_that_the_hub_uses(
    paths: tuple[str, ...], split: str | None, expected: tuple[str, ...]
) -> None:
    assert split_files(paths, split) == expected


def test_a_split_in_several_configurations_is_an_error_that_names_one() -> None:
    with pytest.raises(WatchlistError, match="is in 2 folders") as caught:
        split_files(WIKITEXT, "train")
    assert "split: wikitext-103-raw-v1/train" in caught.value.hint


def test_suffix_counts_a_compression_with_what_it_compresses() -> None:
    suffixes = [suffix_of(path) for path in ("a/b.c.jsonl.gz", "x.tar.PARQUET", "plain")]
    assert suffixes == [".jsonl.gz", ".parquet", ""]
