"""The kinds of values that keys of the watchlist take."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema

from bot.records.config import SIGNER
from bot.watch.names import NAME, REPO_ID

# The files that calibration and evaluation can read.
FILE_SUFFIXES = ("txt", "md", "jsonl", "jsonl.gz", "parquet")

_FILE = rf"[^/]\.({'|'.join(suffix.replace('.', r'[.]') for suffix in FILE_SUFFIXES)})$"
_TASK_FILE = r"[^/]\.ya?ml$"
_MAX_NAMESPACE = 42
MAX_REPO_ID = 96  # characters, as huggingface_hub counts them: owner, slash and name
RepoId = Annotated[str, StringConstraints(pattern=REPO_ID, max_length=MAX_REPO_ID)]
Namespace = Annotated[str, StringConstraints(pattern=rf"^{NAME}$", max_length=_MAX_NAMESPACE)]
FullSha = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Revision = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=200)]
ModulePath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.\w+)+$")]
SignerText = Annotated[str, StringConstraints(pattern=SIGNER, max_length=500)]
LicenseId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._+-]*$")]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
CollectionTitle = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=60)]
TaskName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)]
TaskPath = Annotated[str, StringConstraints(pattern=_TASK_FILE, max_length=500)]
EngineVersion = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,4}(\.[0-9]{1,4}){1,2}$")]
_WAIT = r"^[0-9]{1,4}[mhd]$"
Wait = Annotated[str, StringConstraints(pattern=_WAIT)]
FilePath = Annotated[str, StringConstraints(pattern=_FILE, max_length=500)]

# Shell patterns for the names of repos, of architectures or of model types.
_GLOB = r"^[A-Za-z0-9_.*?!\[\]-]+$"
_COUNT = r"^[0-9]{1,15}(\.[0-9]{1,3})?[KMBT]?$"
_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _day(value: object) -> object:
    """A day in quotes is a day, too."""
    is_day = isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value)
    return date.fromisoformat(str(value)) if is_day else value


def _count(value: object) -> object:
    """`70B` is 70,000,000,000."""
    if not isinstance(value, str) or not re.fullmatch(_COUNT, value):
        return value
    return round(float(value.rstrip("KMBT")) * _UNITS.get(value[-1], 1))


Glob = Annotated[str, StringConstraints(pattern=_GLOB, max_length=MAX_REPO_ID)]
_GLOB_SCHEMA = {"type": "string", "pattern": _GLOB, "maxLength": MAX_REPO_ID}
Globs = Annotated[
    tuple[Glob, ...],
    Field(strict=False),
    BeforeValidator(_one_or_more),
    WithJsonSchema({"anyOf": [_GLOB_SCHEMA, {"type": "array", "items": _GLOB_SCHEMA}]}),
]
Day = Annotated[date, BeforeValidator(_day)]
Count = Annotated[
    int,
    Field(gt=0),
    BeforeValidator(_count),
    WithJsonSchema({"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "string", "pattern": _COUNT}]}),
]


def wait_s(wait: str | None) -> int:
    """`90m`, `2h` or `1d` in seconds."""
    return int(wait[:-1]) * {"m": 60, "h": 3600, "d": 86_400}[wait[-1]] if wait else 0


def is_text_file(name: str) -> bool:
    """Whether a file of this name could be read as text or chats."""
    return re.search(_FILE, name) is not None


def is_task_file(name: str) -> bool:
    return re.search(_TASK_FILE, name) is not None


def is_namespace(name: str) -> bool:
    return re.fullmatch(NAME, name) is not None and len(name) <= _MAX_NAMESPACE
