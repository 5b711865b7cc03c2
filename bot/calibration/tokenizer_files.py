"""Why the tokenizer in a folder does not load or encode: which file is wrong, or which package is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer
from transformers import AutoConfig

from bot.checkpoint.config import parse_config
from bot.checkpoint.repo_files import CHAT_TEMPLATE, CONFIG, TOKENIZER_CONFIG, is_vocabulary
from bot.errors import (
    BotError,
    EnvironmentProblem,
    QuantizationError,
    UnsupportedModelError,
    UpstreamError,
    untrusted_input,
)

_TOKENIZER: Final = "tokenizer.json"
_OBJECTS: Final = (TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "vocab.json")
# The modules that transformers reads each kind of `*.model` with, and the packages on PyPI that have them.
_SENTENCEPIECE: Final = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
_TIKTOKEN: Final = {"tiktoken": "tiktoken"}
_PROTOBUF_START: Final = b"\n"  # of a SentencePiece model; a tiktoken file begins with base64


def not_loaded(folder: Path, reason: str, *, trust_remote_code: bool) -> BotError:
    """reason: what transformers says."""
    if "trust_remote_code" in reason:
        return _does_not_load(
            folder, reason, hint="It needs its own code: read that, then allow it with `trust_remote_code: true`."
        )
    if (problem := _missing_packages(folder)) is not None:
        return problem
    for name, read in _readers(folder, trust_remote_code):
        if (folder / name).is_file() and (its_own := _reason_of_failure(read)) is not None:
            if name == CONFIG:
                return UnsupportedModelError(
                    f"{folder / name}: transformers cannot read it: {its_own}",
                    hint="Look at config.json upstream.",
                )
            return _does_not_load(folder, f"{name}: {its_own}", hint=f"Look at {name} of the source repo.")
    return _does_not_load(
        folder, reason, hint="Check tokenizer.json and tokenizer_config.json of the source repo."
    )


def read_text_config(folder: Path, *, trust_remote_code: bool) -> dict[str, Any]:
    """The text decoder's part of config.json, with transformers' defaults; empty without a config.json.

    Raises UpstreamError where it is no JSON object, anything where it is no model's.
    """
    path = folder / CONFIG
    if not path.is_file():
        return {}
    parse_config(path.read_bytes(), where=str(path))
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    settings: dict[str, Any] = config.get_text_config().to_dict()
    return settings


def encodes_nothing(folder: Path) -> BotError:
    """Of a tokenizer that has no tokens for a plain sentence."""
    if (problem := _missing_packages(folder)) is not None:
        return problem
    found = sorted(path.name for path in folder.iterdir() if is_vocabulary(path.name))
    return UpstreamError(
        f"{folder}: the tokenizer encodes a sentence to no tokens; of vocabulary files there {_listed(found)}",
        hint="transformers needs tokenizer.json, tokenizer.model, or vocab.json with merges.txt.",
    )


def _does_not_load(folder: Path, reason: str, *, hint: str) -> QuantizationError:
    return QuantizationError(f"the tokenizer in {folder} does not load: {reason}", hint=hint)


def _listed(names: list[str]) -> str:
    return f"{'is' if len(names) == 1 else 'are'} {', '.join(names)}" if names else "is none"


def _missing_packages(folder: Path) -> EnvironmentProblem | None:
    if (folder / _TOKENIZER).is_file():
        return None
    for path in sorted(folder.glob("*.model")):
        with path.open("rb") as file:
            needed = _SENTENCEPIECE if file.read(1) == _PROTOBUF_START else _TIKTOKEN
        missing = [package for module, package in needed.items() if not _is_installed(module)]
        if missing:
            return EnvironmentProblem(
                f"{path}: reading it needs the Python package{'s' * (len(missing) > 1)} {' and '.join(missing)}",
                hint=f"pip install {' '.join(missing)}",
            )
    return None


def _is_installed(module: str) -> bool:
    parent = module.rpartition(".")[0]
    return (not parent or _is_installed(parent)) and find_spec(module) is not None


def _readers(folder: Path, trust_remote_code: bool) -> list[tuple[str, Callable[[], object]]]:
    """Each file that can be wrong, and what reads it alone."""
    return [
        (_TOKENIZER, lambda: Tokenizer.from_file(str(folder / _TOKENIZER))),
        *((name, lambda name=name: _read_object(folder / name)) for name in _OBJECTS),
        (CHAT_TEMPLATE, lambda: (folder / CHAT_TEMPLATE).read_text("utf-8")),
        (CONFIG, lambda: read_text_config(folder, trust_remote_code=trust_remote_code)),
    ]


def _read_object(path: Path) -> None:
    if not isinstance(json.loads(path.read_text("utf-8")), dict):
        raise ValueError("not a JSON object")


def _reason_of_failure(read: Callable[[], object]) -> str | None:
    try:
        with untrusted_input(QuantizationError):
            read()
    except QuantizationError as error:
        return error.message
    return None
