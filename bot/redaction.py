"""Secrets, kept out of all that is written: the values that this process holds, and what has the form of one.

Errors are redacted when they are made, and everything printed or logged once more, by `cli/streams.py`.
"""

from __future__ import annotations

import base64
import json
import os
import re
import string
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from bot.text import escape_github, escape_markdown

HIDDEN = "***"
# Names of variables. A secret can have any name; a child process gets only those that it needs.
SECRET_NAME = re.compile(r".*(?:TOKEN|SECRET|PASSWORD|KEY|WEBHOOK)")
# It may name a file, which this process reads.
_KEY_FILE = "AWQ_BOT_SIGNING_KEY"
_LARGEST_KEY_BYTES = 1 << 16
_SHORTEST = 8
_SHORTEST_IN_FILES = 16  # a shorter one may be a word
_URL_PASSWORD = re.compile(r"://[^\s/@:]*:([^\s/@]+)@")

# What is redacted without being known: a token that a Hub exchanged, or one that `hf auth login` stored.
_FORMS = tuple(
    (re.compile(pattern, flags), replacement)
    for pattern, replacement, flags in (
        # https://huggingface.co/docs/hub/security-tokens
        (r"\bhf_(?:[a-z]+_)?[A-Za-z0-9]{30,}|\bapi_org_[A-Za-z0-9]{30,}", HIDDEN, 0),
        # https://github.blog/engineering/platform-security/behind-githubs-new-authentication-token-formats/
        (r"\bgh[oprsu]_[A-Za-z0-9_.-]{35,}[A-Za-z0-9]|\bgithub_pat_[A-Za-z0-9_]{22,}", HIDDEN, 0),
        # https://www.rfc-editor.org/rfc/rfc7519: the header and the claims are JSON objects in base64.
        (r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*", HIDDEN, 0),
        # https://www.rfc-editor.org/rfc/rfc7468; where its end was cut off, all that follows.
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", HIDDEN, re.DOTALL),
        (r"(?<=://)[^\s/@'\"<>]+@(?=[\w\[])", f"{HIDDEN}@", 0),
        (r"(\bauthorization['\"]?\s*[:=]\s*['\"]?)(?:\w+\s+)?[^\s'\"]+", rf"\1{HIDDEN}", re.IGNORECASE),
        (r"(\bbearer\s+)[\w.~+/=-]{16,}", rf"\1{HIDDEN}", re.IGNORECASE),
        # Links that are signed, as those to large files are.
        (
            r"([?&](?:X-Amz-(?:Signature|Credential|Security-Token)|Signature|sig|token|Policy)=)[^&\s'\"<>]+",
            rf"\1{HIDDEN}",
            re.IGNORECASE,
        ),
    )
)


def redacted(text: str) -> str:
    """The text without any secret of this process, and without anything that has the form of one."""
    for written in _writings(known_secrets()):
        if written in text:
            text = text.replace(written, HIDDEN)
    for form, replacement in _FORMS:
        text = form.sub(replacement, text)
    return text


def known_secrets() -> tuple[str, ...]:
    """The values of all variables whose names end as those of secrets do, and passwords in URLs; longest first."""
    found: set[str] = set()
    for name, value in os.environ.items():
        found.update(_passwords(value))
        if SECRET_NAME.fullmatch(name):
            found.update(_values(name, value.strip()))
    return tuple(sorted((value for value in found if len(value) >= _SHORTEST), key=lambda one: (-len(one), one)))


def holds_secret(content: bytes) -> bool:
    """Whether a file has a secret of this process in it, as it is or encoded."""
    long = tuple(secret for secret in known_secrets() if len(secret) >= _SHORTEST_IN_FILES)
    return any(written.encode() in content for written in _writings(long))


def _passwords(value: str) -> Iterator[str]:
    for found in _URL_PASSWORD.finditer(value):
        yield from (found[1], _unquoted(found[1]))


def _values(name: str, value: str) -> Iterator[str]:
    """A key in PEM also line by line, as it may be shown in part."""
    if os.path.exists(value):  # noqa: PTH110 - Path raises for a key, which is longer than any name
        value = _read_key(value) if name == _KEY_FILE else ""
    if "-----BEGIN" in value:
        yield from (line.strip() for line in value.splitlines() if not line.startswith("-----"))
    yield value


@lru_cache(maxsize=8)
def _read_key(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return file.read(_LARGEST_KEY_BYTES).decode("ascii", errors="replace").strip()
    except OSError:
        return ""


@lru_cache(maxsize=8)
def _writings(secrets: tuple[str, ...]) -> tuple[str, ...]:
    """Each secret as it may be written: as it is, quoted, escaped or encoded. Longest first."""
    found = {written for secret in secrets for written in _encoded(secret)}
    return tuple(sorted(found, key=lambda one: (-len(one), one)))


def _encoded(secret: str) -> Iterator[str]:
    content, longest = secret.encode(errors="surrogateescape"), 2 * len(secret) + 1
    yield secret
    # As summaries and issues escape it, and JSON and repr() do.
    yield from (escape_markdown(secret, longest), escape_github(secret, longest))
    yield from (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1])
    for quoted in (_quoted(content), _quoted(content, "/"), _quoted(content, " ").replace(" ", "+")):
        yield from (quoted, re.sub("%..", lambda code: code[0].lower(), quoted))
    yield from (content.hex(), content.hex().upper())
    for shift in range(3):
        yield from _inside_base64(content, shift)


# As urllib does it, which decisions may not import: it opens connections, too.


def _quoted(content: bytes, kept: str = "") -> str:
    plain = f"{string.ascii_letters}{string.digits}_.-~{kept}".encode()
    return "".join(chr(byte) if byte in plain else f"%{byte:02X}" for byte in content)


def _unquoted(text: str) -> str:
    content = re.sub(rb"%([0-9A-Fa-f]{2})", lambda code: bytes.fromhex(code[1].decode()), text.encode())
    return content.decode(errors="replace")


def _inside_base64(content: bytes, shift: int) -> Iterator[str]:
    """What base64 makes of it after `shift` other bytes, as in `user:password`: what depends on no neighbour."""
    encoded = base64.b64encode(bytes(shift) + content).decode()
    inside = encoded[(0, 2, 3)[shift] : (shift + len(content)) * 8 // 6]
    yield from (inside, inside.translate(str.maketrans("+/", "-_")))
