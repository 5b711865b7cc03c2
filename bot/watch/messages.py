"""What is wrong with a value of the watchlist and what to type instead: pydantic's errors, explained."""

from __future__ import annotations

import difflib
import re
import types
import typing
import unicodedata
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from bot.watch.names import read_reference
from bot.watch.schema import DiscoverSpec, RecipeSpec, WatchlistSpec
from bot.watch.values import FILE_SUFFIXES

_LICENSE_HINT = "Write licence ids as the Hub does, in lower case: apache-2.0, mit, llama3.1."
_GLOB_KEYS = ("match", "exclude", "architectures")
_GLOB_HINT = "Write a pattern such as `Qwen4-*`: letters, digits, - _ . and * ? [ ]."
_VERSION_HINT = "Write one exact version in quotes, such as '7.6.0'."
_PATTERN_HINTS = {
    "gptqmodel": _VERSION_HINT,
    "vllm": _VERSION_HINT,
    "settle": "Write minutes, hours or days: 90m, 2h or 1d.",
    "author": "A namespace is a user or organisation name, without a slash.",
    "match": f"{_GLOB_HINT} It is compared with the name, without the owner.",
    "exclude": f"{_GLOB_HINT} It is compared with the name, without the owner.",
    "architectures": "Write names as in config.json, such as `Qwen3ForCausalLM`, `qwen3` or `Qwen*`.",
    "repo_id": "A repo id is `owner/name`, as in the model's URL.",
    "target": "A repo id is `owner/name`.",
    "dataset": "A repo id is `owner/name`, as in the data set's URL.",
    "publish_to": "A namespace is a user or organisation name, without a slash.",
    "revision": "Use a branch, a tag or a commit; a data set needs the full 40-character sha.",
    "modules_to_not_convert": "Write full paths such as model.layers.0.self_attn.q_proj.",
    "file": f"Text is read from files that end in {', '.join(f'.{suffix}' for suffix in FILE_SUFFIXES)}.",
    "signed_by": "Write `key:<sha256 of model.pub>`, `certificate:<sha256>`, or a workflow of GitHub's: "
    "https://github.com/OWNER/NAME/.github/workflows/model.yml@refs/heads/main.",
    "allow": _LICENSE_HINT,
    "deny": _LICENSE_HINT,
}
_SHARE_HINT = "A share is a number from 0 to 1: for 10 %, write 0.1."
_SHARES = {"max_unquantized_share", "min_top1", "max_unseen_experts"}
_LITERAL_HINTS = {
    "bits": "AWQ checkpoints hold 4-bit weights.",
    "group_size": "Inference servers support these group sizes.",
    "zero_point": "Inference servers support AWQ with zero points.",
    "version": "All inference servers support the GEMM layout.",
}
_MISSING_HINTS = {
    "models": "Add `models:` and under it one `- owner/name` per line.",
    "repo_id": "A model is `- owner/name`, or keys with `repo_id: owner/name` among them.",
    "author": "Name the user or organisation whose repos are looked through, such as `author: Qwen`.",
}
_DISCOVER_HINTS = {
    "repo_id": "A rule names an `author` and, with `match`, repos of it. A single repo belongs under `models`.",
    "target": "A rule can find several models: name the account with `publish_to`.",
}
HOLD_HINT = "`hold:` stops work on a model and says why: `hold: waiting for v2`. To go on, remove the line."
SOURCE_HINT = (
    "Write `- builtin: prose`, `- file: texts.jsonl`, or `- {dataset: owner/name, revision: <full sha>}`."
)
TASK_HINT = "Write `- {file: tasks/own.yaml}`, or `- {task: arc_easy, dataset: owner/name, revision: <full sha>}`."
OVERLAP_HINT = "A model has to be measured on text that it was not calibrated on: name another split or file."
_TYPE_HINTS = {
    "bool_type": "Write true or false.",
    "finite_number": "To disable a threshold, set a very large number.",
    "date_type": "Write a day: 2026-01-31.",
    "tuple_type": "A list is written `[one, two]`, or one `- item` per line.",
}


def describe(detail: ErrorDetails, typed: str | None) -> tuple[str, str]:
    """A message and a hint for one pydantic error. typed: the value as it stands in the file, if it is plain."""
    loc, kind, value = detail["loc"], detail["type"], detail.get("input")
    key = next((str(part) for part in reversed(loc) if isinstance(part, str)), "watchlist")
    if kind == "extra_forbidden":
        return f"unknown key {_short(repr(key))}", _renamed(key, value, loc[:-1]) or _meant(key, loc[:-1])
    if kind == "missing":
        return f"key {key!r} is missing", _MISSING_HINTS.get(key, "")
    if kind in ("source", "task"):
        return detail["msg"], SOURCE_HINT if kind == "source" else TASK_HINT
    if value is None:
        return f"{key}: has no value", "Give it one, or remove the line."
    return _wrong_value(detail, key, typed)


def _wrong_value(detail: ErrorDetails, key: str, typed: str | None) -> tuple[str, str]:
    kind, value = detail["type"], detail["input"]
    shown = _short(typed) if typed else _short(repr(value)) if isinstance(value, str) else _kind_of(value)
    if kind == "string_pattern_mismatch":
        return f"{key}: {shown} is not valid", _likely(key, str(value)) or _PATTERN_HINTS.get(key, "")
    if key == "hold" and isinstance(value, bool):
        return f"hold: {shown} is not a reason", HOLD_HINT
    if kind == "string_type" and typed:
        return f"{key}: YAML reads {shown} as {_yaml_word(value)}, not as text", f"Put it in quotes: '{shown}'."
    if kind == "literal_error":
        expected = detail["ctx"]["expected"].replace("True", "true")
        hint = _nearest(value, expected) or _LITERAL_HINTS.get(key, "")
        return f"{key}: {shown} is not allowed; expected {expected}", hint
    if kind == "model_type":
        example = " or `owner/name`" if key == "models" else ""
        return f"{key}: expected a mapping{example}, found {shown}", ""
    if kind == "tuple_type":
        return f"{key}: expected a list, found {shown}", _TYPE_HINTS[kind]
    # "Input should be greater than 0" -> "max_kl: should be greater than 0, not -1"
    what = detail["msg"].removeprefix("Input ").removeprefix("String ")
    return f"{key}: {what[:1].lower()}{what[1:]}, not {shown}", _type_hint(kind, key, value)


def _type_hint(kind: str, key: str, value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+", value) and kind in ("int_type", "float_type"):
        return "Remove the quotes."
    if key == "max_parameters" and kind == "int_type":
        return "Write a number, or one with K, M, B or T: 70B."
    if key in _SHARES and kind != "finite_number":
        return _SHARE_HINT
    return _TYPE_HINTS.get(kind, "")


def _nearest(value: object, expected: str) -> str:
    near = difflib.get_close_matches(str(value)[:100], re.findall(r"'([^']+)'", expected), n=1)
    return f"Did you mean {near[0]!r}?" if near else ""


def _likely(key: str, value: str) -> str:
    """What was probably meant by a name that is not valid: an address that was pasted, or invisible characters."""
    unseen = _invisible(value)
    is_account = key in ("publish_to", "author")
    found = read_reference(f"{value.strip('/ ')}/name" if is_account else value)
    if found is None or key in _GLOB_KEYS:
        return unseen
    if is_account:
        return f"{unseen} Did you mean {found.repo_id.split('/')[0]!r}?".strip()
    pinned = f" with `revision: {found.revision}`" if found.revision else ""
    return f"{unseen} Did you mean {found.repo_id!r}{pinned}?".strip()


def _invisible(value: str) -> str:
    """The names of the invisible characters, such as those copied from a web page."""
    names = dict.fromkeys(
        f"U+{ord(char):04X} ({unicodedata.name(char, 'no name').lower()})"
        for char in value
        if not char.isprintable()
    )
    return f"It contains invisible characters: {', '.join(list(names)[:3])}." if names else ""


def _yaml_word(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "a number" if isinstance(value, int | float) else "a date"


def _kind_of(value: object) -> str:
    """What a list or a mapping is called."""
    return "a list" if isinstance(value, list | tuple) else "a mapping"


def _short(text: str) -> str:
    """Invisible characters are escaped: `\\u200b`."""
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- unknown keys ---------------------------------------------------------------------------------------------


def _renamed(key: str, value: object, loc: tuple[str | int, ...]) -> str:
    """What took the place of a key: of version 0.1's `search:`, and of a model's keys in a rule of `discover`."""
    if _model_at(loc) is DiscoverSpec:
        return _DISCOVER_HINTS.get(key, "")
    if key != "search" or _model_at(loc) is not RecipeSpec:
        return ""
    return f"Did you mean `method: {'awq' if value == 'awq' else 'awq+gptq'}`?"


def _meant(key: str, loc: tuple[str | int, ...]) -> str:
    """What an unknown key was probably meant to be, here or one level away."""
    model = _model_at(loc)
    known = tuple(model.model_fields)
    below = [name for name, inner in _inner_models(model) if key in inner.model_fields]
    if below:
        return f"It belongs under `{below[0]}`."
    if key in WatchlistSpec.model_fields:
        return "It belongs at the top of the file, without indentation."
    near = difflib.get_close_matches(key[:100], known, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Allowed keys: {', '.join(known)}."


def _model_at(loc: tuple[str | int, ...]) -> type[BaseModel]:
    """The model that describes a place of the document, found by walking the models' annotations."""
    model: type[BaseModel] = WatchlistSpec
    for part in loc:
        if isinstance(part, str):
            model = dict(_inner_models(model))[part]
    return model


def _inner_models(model: type[BaseModel]) -> list[tuple[str, type[BaseModel]]]:
    found = ((name, _model_of(field.annotation)) for name, field in model.model_fields.items())
    return [(name, inner) for name, inner in found if inner is not None]


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    is_container = typing.get_origin(annotation) in (tuple, types.UnionType, typing.Union)
    inner = (_model_of(item) for item in typing.get_args(annotation)) if is_container else ()
    return next((model for model in inner if model is not None), None)
