"""The Python standard library's sources as text: code that every machine already has.

`builtin: code` in a watchlist calibrates on the `calibrate` split; `test` is evaluated on.
"""

import os
import platform
import sysconfig
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Final, Literal

Split = Literal["calibrate", "test"]

# The version of the rule below: what is left out, and how the rest is split.
BUILTIN_NAME: Final = "stdlib"
SELECTION_VERSION: Final = 1
BUILTIN_VERSION: Final = f"{BUILTIN_NAME}/{SELECTION_VERSION}+python{platform.python_version()}"

# In hundredths of the hash's range. The rest is kept apart: the tests' models were trained on it.
_SHARES: Final[dict[Split, range]] = {"calibrate": range(70, 84), "test": range(92, 100)}

# Third-party packages, what a distribution may leave out, and tables: lists of characters or constants are neither
# prose nor code, and one of them can fill a whole calibration block.
_LEFT_OUT_FOLDERS: Final = frozenset(
    {"__pycache__", "encodings", "ensurepip", "idlelib", "lib-dynload", "lib2to3", "pydoc_data"}
    | {"site-packages", "dist-packages", "test", "tests", "tkinter", "turtledemo"}
)
_LEFT_OUT_FILES: Final = frozenset(
    {"_compat_pickle.py", "html/entities.py", "keyword.py", "locale.py", "stringprep.py", "this.py", "token.py"}
)
# Build configuration (`_sysconfigdata_*.py`, `config-3.11-…/`) differs from machine to machine.
_LEFT_OUT_PREFIXES: Final = ("_sysconfigdata", "config-")


def documents(split: Split) -> tuple[str, ...]:
    """The text of each module of a split, in the order of their paths; every document ends with one newline."""
    return tuple(read(path) for path in modules(_SHARES[split]))


@cache
def modules(shares: range) -> tuple[Path, ...]:
    """The absolute paths of the modules with these shares, sorted by their path in the standard library."""
    names = sorted(_names(root()))
    return tuple(root() / name for name in names if is_selected(name) and share_of(name) in shares)


def root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _names(top: Path) -> Iterator[str]:
    """Modules below a folder, posix and relative; folders that are left out are not searched."""
    for folder, below, files in os.walk(top):
        # In site-packages alone there may be fifty times as many files as in the library itself.
        below[:] = [name for name in below if name not in _LEFT_OUT_FOLDERS]
        parent = Path(folder).relative_to(top)
        yield from ((parent / file).as_posix() for file in files if file.endswith(".py"))


def is_selected(name: str) -> bool:
    """Whether a module is used; name: posix and relative, such as `json/decoder.py`."""
    parts = PurePosixPath(name).parts
    if name in _LEFT_OUT_FILES or parts[0].startswith(_LEFT_OUT_PREFIXES):
        return False
    return _LEFT_OUT_FOLDERS.isdisjoint(parts[:-1])


def share_of(name: str) -> int:
    """0 to 99, from sha256 of a module's relative posix path: the same on every machine and version."""
    return int.from_bytes(sha256(name.encode()).digest()[:8], "big") * 100 >> 64


def read(path: Path) -> str:
    # A few modules declare another encoding than UTF-8; a replaced character does no harm.
    content = path.read_bytes().decode("utf-8", errors="replace")
    return content.replace("\r\n", "\n").strip() + "\n"
