"""JSON parsed strictly and edited as text, and the artifact's config.json.

Loading and saving a config with transformers 5 renames keys that older readers need (`rope_theta`), so single keys
are edited and every other byte stays as it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bot.errors import UnsupportedModelError, UpstreamError, WatchlistError
from bot.records import Recipe

DTYPE_KEYS = ("torch_dtype", "dtype")
_TEXT_CONFIGS = ("text_config", "language_config", "llm_config")
_SPACE = " \t\n\r"
# How a file begins that was uploaded without git-lfs: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
LFS_POINTER = b"version https://git-lfs"
_BROKEN = "The file is damaged or invalid; look at it upstream."


def parse_config(content: bytes, *, where: str = "config.json") -> dict[str, Any]:
    """A config.json. Raises UpstreamError when it is not a JSON object, or has duplicate keys."""
    return parse_object(content, where=where)


def open_config(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """The config.json of a model to be quantized, as it is and parsed.

    Raises WatchlistError when there is no such folder, UpstreamError when there is no such file or as parse_config
    does, UnsupportedModelError when the model is already quantized or has no model_type.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise WatchlistError(
            f"{folder}: no such folder", hint="Give the folder that holds the model's config.json."
        )
    if not path.is_file():
        raise UpstreamError(f"{path}: missing", hint="Is it a model folder in the format of transformers?")
    content = path.read_bytes()
    config = parse_config(content, where=str(path))
    if config.get("quantization_config") is not None:
        raise _already_quantized(str(path))
    if not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise UnsupportedModelError(
            f"{path}: has no model_type", hint="transformers needs it to find the architecture."
        )
    return content, config


def artifact_config(
    upstream: bytes,
    *,
    recipe: Recipe,
    modules_to_not_convert: Sequence[str],
    artifact_dtype: str,
    trust_remote_code: bool,
    where: str = "config.json",
) -> bytes:
    """upstream's bytes with `quantization_config` added and its dtype key set to artifact_dtype (`float16`).

    modules_to_not_convert: what is not packed and has a matrix, by full path. trust_remote_code: the artifact has
    upstream's Python files; else nothing refers to them. Raises UpstreamError as parse_config does,
    UnsupportedModelError when the model is already quantized.
    """
    config = parse_config(upstream, where=where)
    if config.get("quantization_config") is not None:
        raise _already_quantized(where)
    content = upstream if trust_remote_code else without_own_code(upstream, where=where)
    for key in [key for key in DTYPE_KEYS if key in config] or [DTYPE_KEYS[0]]:
        content = set_key(content, key, artifact_dtype, where=where)
    written = quantization_config(recipe, modules_to_not_convert)
    return set_key(content, "quantization_config", written, where=where)


def _already_quantized(where: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{where}: has a quantization_config: the model is already quantized",
        hint="Start from the model in full precision.",
    )


def quantization_config(recipe: Recipe, modules_to_not_convert: Sequence[str]) -> dict[str, object]:
    """The keys that AutoAWQ 0.2.9 writes and that vLLM, SGLang and transformers read."""
    return {
        "quant_method": "awq",
        "bits": recipe.bits,
        "group_size": recipe.group_size,
        "zero_point": recipe.zero_point,
        "version": recipe.version,
        "modules_to_not_convert": list(modules_to_not_convert) or None,
    }


def without_own_code(content: bytes, *, where: str) -> bytes:
    """The same JSON without the entries of `auto_map` that name Python files of the same repo.

    An artifact without these files would be refused to everybody who loads it with `trust_remote_code=True`, even
    though transformers has the classes. Entries that name another repo (`owner/repo--module.Class`) stay. Raises
    UpstreamError as parse_object does.
    """
    if b"auto_map" not in content:
        return content
    config = parse_object(content, where=where)
    named = config.get("auto_map")
    kept = {key: value for key, value in named.items() if _is_elsewhere(value)} if isinstance(named, dict) else {}
    if "auto_map" not in config or kept == named:
        return content
    return set_key(content, "auto_map", kept, where=where) if kept else _without_key(content, "auto_map")


def _is_elsewhere(named: object) -> bool:
    """named: a class, or a slow and a fast one of which one may be null."""
    classes = [item for item in (named if isinstance(named, list) else [named]) if item is not None]
    return bool(classes) and all(isinstance(item, str) and "--" in item for item in classes)


def with_chat_template(tokenizer_config: bytes, template: bytes, *, where: str) -> bytes:
    """tokenizer_config.json, with the template of `chat_template.jinja` inserted if it has none.

    Some servers read only this key. Raises UpstreamError when either cannot be read.
    """
    if parse_object(tokenizer_config, where=where).get("chat_template") is not None:
        return tokenizer_config
    try:
        text = template.decode()
    except UnicodeDecodeError as error:
        raise UpstreamError(
            f"{where}: the template beside it is not UTF-8: {error}", hint="Look at it upstream."
        ) from None
    return set_key(tokenizer_config, "chat_template", text, where=where)


def parse_object(content: bytes, *, where: str) -> dict[str, Any]:
    """The JSON object in content.

    Infinity and NaN are read, as Python writes them and some models need them:
    https://github.com/huggingface/transformers/issues/42959. Raises UpstreamError for duplicate keys, and for
    anything else than an object.
    """
    try:
        value = json.loads(content.decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        pointer = content.startswith(LFS_POINTER)
        reason = "it is a git-lfs pointer, not the file itself" if pointer else f"not valid JSON: {error}"
        raise UpstreamError(f"{where}: {reason}", hint=_BROKEN) from None
    if not isinstance(value, dict):
        raise UpstreamError(f"{where}: not a JSON object", hint=_BROKEN)
    return value


def text_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the text decoder, with those of the whole model where it has none."""
    inner: Mapping[str, Any] = next(
        (config[name] for name in _TEXT_CONFIGS if isinstance(config.get(name), Mapping)), {}
    )
    return {**config, **inner}


def set_key(content: bytes, key: str, value: object, *, where: str) -> bytes:
    """The same text with the value of one top-level key replaced, or the key appended.

    A new key is indented like the others. Raises UpstreamError as parse_object does.
    """
    parse_object(content, where=where)
    text = content.decode()
    members, inner_end = _top_level_members(text)
    indent = _indent_of(text, members[0][1]) if members else None
    rendered = _render(value, indent)
    for name, _, value_start, value_end in members:
        if name == key:
            return (text[:value_start] + rendered + text[value_end:]).encode()
    entry = f"{json.dumps(key, ensure_ascii=False)}: {rendered}"
    if not members:
        return (text[:inner_end] + entry + text[inner_end:]).encode()
    last_end = members[-1][3]
    separator = ", " if indent is None else ",\n" + indent
    return (text[:last_end] + separator + entry + text[last_end:]).encode()


def _without_key(content: bytes, key: str) -> bytes:
    """content without a top-level key that it has, and the comma that belonged to it."""
    text = content.decode()
    members, _ = _top_level_members(text)
    number = next(number for number, member in enumerate(members) if member[0] == key)
    _, start, _, end = members[number]
    if number + 1 < len(members):
        end = members[number + 1][1]
    elif number:
        start = members[number - 1][3]
    return (text[:start] + text[end:]).encode()


def _top_level_members(text: str) -> tuple[list[tuple[str, int, int, int]], int]:
    """(key, key start, value start, value end) of each member, and the position of the closing brace."""
    decoder = json.JSONDecoder()
    position = _skip(text, text.index("{") + 1)
    members = []
    while text[position] != "}":
        key, key_end = decoder.raw_decode(text, position)
        value_start = _skip(text, _skip(text, key_end) + 1)
        _, value_end = decoder.raw_decode(text, value_start)
        members.append((key, position, value_start, value_end))
        position = _skip(text, value_end)
        if text[position] == ",":
            position = _skip(text, position + 1)
    return members, position


def _skip(text: str, position: int) -> int:
    while text[position] in _SPACE:
        position += 1
    return position


def _indent_of(text: str, key_start: int) -> str | None:
    """The first key's indentation; None if it is on the line of the brace."""
    before = text[:key_start].rpartition("\n")
    return before[2] if before[1] and not before[2].strip() else None


def _render(value: object, indent: str | None) -> str:
    if indent is None:
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False, indent=indent).replace("\n", "\n" + indent)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise ValueError(f"key {key!r} occurs twice")
        members[key] = value
    return members
