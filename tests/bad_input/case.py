"""One input that is wrong: its kind, who meets it, and what is right for the user then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from bot.localhub import Fault
from bot.localhub.store import Content

PINNED = "PINNED"  # stands for the commit of a data set

# None: the file is not there. A function makes what is large only when it is needed.
Change = Content | Callable[[], bytes] | None


class Kind(StrEnum):
    """What is wrong."""

    WEIGHTS = "weights"
    CONFIG = "config.json"
    TOKENIZER = "tokenizer"
    TEMPLATE = "chat template"
    ROWS = "calibration rows"
    NAMES = "names and licences"
    COMPANIONS = "other small files"
    ENVIRONMENT = "environment"
    ANSWERS = "the Hub's answers"


class Place(StrEnum):
    """Who meets it first."""

    PLAN = "plan"
    PULL = "pull"
    TOKENIZER = "tokenizer"
    SKELETON = "skeleton"
    LAYERS = "layers"
    EVALUATION = "evaluation"
    CARD = "card"


@dataclass(frozen=True, slots=True)
class Refused:
    """An error of this exit code, its message one line.

    names: the file, or the setting, that is to blame. says: other words. Both are of the message or of the hint.
    never: words that are in neither, such as the name of a file that is fine.
    """

    exit_code: int
    names: str
    says: tuple[str, ...] = ()
    never: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Accepted:
    """says: words of what comes out, such as warnings, calibration text, the card; never: words that do not."""

    says: tuple[str, ...] = ()
    never: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """report: where it was reported, as repo#number; empty where it was found here.

    files: path in the repo -> content, on top of `small_model`. entry: keys of the watchlist's entry. rows: of the
    calibration file, alone or `among` good ones. text: to measure on, if another than a good one. variables:
    environment variables. faults: of the Hub. card: facts of upstream that the card repeats. prepare: called with
    the job's folder before it is pulled. alone: planned on a watchlist of its own, as it may take others' time.
    """

    name: str
    kind: Kind
    place: Place
    right: Refused | Accepted
    report: str = ""
    files: Mapping[str, Change] = field(default_factory=dict)
    entry: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[object, ...] = ()
    among: int = 0
    text: str | bytes = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    card: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Path], None] | None = None
    alone: bool = False


def content_of(change: Content | Callable[[], bytes]) -> bytes:
    match change:
        case str():
            return change.encode()
        case bytes():
            return change
        case Path():
            return change.read_bytes()
        case _:
            return change()
