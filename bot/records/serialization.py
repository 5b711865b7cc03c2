"""Records as JSON, and their hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter

Record = TypeVar("Record")

# Metadata of a field that a record got later. JSON has no key for it at its default, so that the JSON of older
# records, which is published and hashed, stays the same.
LATER: Final = {"later": True}


def to_json(value: object) -> str:
    """Records as objects and tuples as lists, wherever they are in the value."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=_as_dict) + "\n"


def from_json(kind: type[Record], text: str | bytes) -> Record:
    """Raises pydantic.ValidationError (a ValueError) when the text is not such a record."""
    made: Record = _adapter(kind).validate_json(text)
    return made


# To make one takes half a second for a large record.
_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def canonical_json(value: object) -> bytes:
    """One byte sequence per value: sorted keys, no spaces, UTF-8."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_as_dict
    )
    return text.encode()


def _as_dict(record: object) -> dict[str, Any]:
    if not is_dataclass(record) or isinstance(record, type):
        raise TypeError(f"{type(record).__name__} is no record")
    values = ((each, getattr(record, each.name)) for each in fields(record))
    return {each.name: value for each, value in values if not _is_left_out(each, value)}


def _is_left_out(each: Field[Any], value: object) -> bool:
    if "later" not in each.metadata:
        return False
    return bool(value == (each.default if each.default_factory is MISSING else each.default_factory()))


def sha256_of(value: object) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()
