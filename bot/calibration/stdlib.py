"""The Python standard library's sources as text: prose and code that every machine already has.

`builtin: stdlib` in a watchlist calibrates on the `calibrate` split; `test` is the default evaluation text.
"""

import os
import platform
import sysconfig
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Final, Literal, get_args

Split = Literal["train", "calibrate", "dev", "test"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)

# The rule below (what is left out, how it is split) has this version: a change of rule is a change of text.
BUILTIN_NAME: Final = "stdlib"
SELECTION_VERSION: Final = 1
BUILTIN_VERSION: Final = f"{BUILTIN_NAME}/{SELECTION_VERSION}+python{platform.python_version()}"

# Upper bounds of each split's share, in 1/100 of the hash's range.
_UPPER_BOUNDS: Final[dict[Split, int]] = {"train": 70, "calibrate": 84, "dev": 92, "test": 100}

# Other people's packages, what a distribution may leave out, and tables: lists of characters or
# constants are neither prose nor code, and one of them can fill a whole calibration block.
_LEFT_OUT_FOLDERS: Final = frozenset(
    {"__pycache__", "encodings", "ensurepip", "idlelib", "lib-dynload", "lib2to3", "pydoc_data"}
    | {"site-packages", "dist-packages", "test", "tests", "tkinter", "turtledemo"}
)
_LEFT_OUT_FILES: Final = frozenset(
    {"_compat_pickle.py", "html/entities.py", "keyword.py", "locale.py", "stringprep.py", "this.py", "token.py"}
)
# Build configuration (`_sysconfigdata_*.py`, `config-3.11-…/`) differs from machine to machine.
_LEFT_OUT_PREFIXES: Final = ("_sysconfigdata", "config-")


def text(split: Split) -> str:
    """All documents of a split, in sorted order, each followed by an empty line."""
    return "".join(f"{document}\n" for document in documents(split))


def documents(split: Split) -> tuple[str, ...]:
    """The text of each module of a split, in sorted order; every document ends with one newline."""
    return tuple(_read(path) for path in modules(split))


@cache
def modules(split: Split) -> tuple[Path, ...]:
    """The absolute paths of a split's modules, sorted by their path relative to the standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    return tuple(root / name for name in sorted(_names(root)) if is_selected(name) and split_of(name) == split)


def _names(root: Path) -> Iterator[str]:
    """Modules below root, posix and relative, from folders that may hold any that takes part."""
    for folder, below, files in os.walk(root):
        # In site-packages alone there may be fifty times as many files as in the library itself.
        below[:] = [name for name in below if name not in _LEFT_OUT_FOLDERS]
        parent = Path(folder).relative_to(root)
        yield from ((parent / file).as_posix() for file in files if file.endswith(".py"))


def is_selected(name: str) -> bool:
    """Whether a module takes part; `name` is posix and relative, such as `json/decoder.py`."""
    parts = PurePosixPath(name).parts
    if name in _LEFT_OUT_FILES or parts[0].startswith(_LEFT_OUT_PREFIXES):
        return False
    return _LEFT_OUT_FOLDERS.isdisjoint(parts[:-1])


def split_of(name: str) -> Split:
    """The split of a module, from sha256 of its relative posix path: the same on every machine and version."""
    share = int.from_bytes(sha256(name.encode()).digest()[:8], "big") * 100 >> 64
    return next(split for split in SPLITS if share < _UPPER_BOUNDS[split])


def _read(path: Path) -> str:
    # A few modules declare another encoding than UTF-8; one odd character is no reason to stop.
    content = path.read_bytes().decode("utf-8", errors="replace")
    return content.replace("\r\n", "\n").strip() + "\n"
