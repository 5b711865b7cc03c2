"""Records as JSON, and their hashes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter

Record = TypeVar("Record")


def to_json(value: object) -> str:
    """Records as objects and tuples as lists, wherever they are in the value."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=_as_dict) + "\n"


def from_json(kind: type[Record], text: str | bytes) -> Record:
    """Raises pydantic.ValidationError (a ValueError) when the text is not such a record."""
    return TypeAdapter(kind).validate_json(text)


def canonical_json(value: object) -> bytes:
    """One byte sequence per value: sorted keys, no spaces, UTF-8."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_as_dict
    )
    return text.encode()


def _as_dict(record: object) -> dict[str, Any]:
    if not is_dataclass(record) or isinstance(record, type):
        raise TypeError(f"{type(record).__name__} is no record")
    return asdict(record)


def sha256_of(value: object) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()
