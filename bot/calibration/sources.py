"""Where the files of a text source are, and which files of a data set hold a split. Names only, and no torch.

`pull` writes the files there, and `build_calibration_set` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from bot.errors import QuantizationError, WatchlistError
from bot.records import TextSource

TEXT_SUFFIXES = (".txt", ".md")
ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def local_path(source: TextSource) -> PurePosixPath | None:
    """Relative to the job's `calibration/` folder; None for built-in text, which is not a file.

    A pinned file is `<sha256><suffix>`, a data set the folder `<owner>--<name>@<revision>` with the data set's
    own paths inside. A file without a sha256 (local use) is its own path, which may be absolute.
    """
    if source.dataset is not None:
        if not source.revision:
            raise QuantizationError(
                f"data set {source.dataset} has no revision", hint="Pin it to a commit: `revision: <sha>`."
            )
        return PurePosixPath(_slug(f"{source.dataset}@{source.revision}"))
    if source.file is None:
        return None
    if source.sha256 is None:
        return PurePosixPath(source.file)
    return PurePosixPath(source.sha256 + suffix_of(source.file))


def split_files(paths: Iterable[str], split: str | None) -> tuple[str, ...]:
    """The files of a data set repo that hold `split`, sorted; every data file when split is None.

    Knows the Hub's layouts `data/train_sft-00000-of-00003.parquet`, `train.jsonl` and `train/0000.parquet`.
    `split: wikitext-2-raw-v1/train` takes the configuration folder too.
    Raises WatchlistError when files of several folders match, which would mix configurations or languages.
    """
    data_files = sorted(path for path in paths if suffix_of(path) in ROW_SUFFIXES)
    if split is None:
        return tuple(data_files)
    folder, _, name = split.rpartition("/")
    found = tuple(path for path in data_files if _holds(path, folder, name))
    folders = sorted({PurePosixPath(path).parent.as_posix() for path in found})
    if len(folders) > 1:
        raise WatchlistError(
            f"split {split!r} is in {len(folders)} folders: {', '.join(folders[:5])}",
            hint=f"Name one, such as `split: {_configuration(folders[0], name)}/{name}`.",
        )
    return found


def suffix_of(path: str) -> str:
    """`.jsonl.gz` of `a/b.c.jsonl.gz`: a compression counts with what it compresses."""
    suffixes = PurePosixPath(path.lower()).suffixes
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def _slug(name: str) -> str:
    return name.replace("/", "--")


def _holds(path: str, folder: str, name: str) -> bool:
    parent = PurePosixPath(path).parent.as_posix()
    if folder and folder not in (parent, _configuration(parent, name)):
        return False
    stem = PurePosixPath(path).name.lower().removesuffix(suffix_of(path))
    # A shard's number, and the fingerprint that older versions of datasets append.
    shard = r"(?:[-.]\d+(?:-of-\d+)?(?:-[0-9a-f]+)?)?"
    by_name = re.fullmatch(rf"(?:.*[-.])?{re.escape(name.lower())}{shard}", stem)
    return by_name is not None or PurePosixPath(parent).name == name


def _configuration(parent: str, name: str) -> str:
    return parent.removesuffix(f"/{name}")
