"""No secret of this process in a text, however it is written, and nothing that has the form of one."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.errors import BotError, reason_of
from bot.redaction import holds_secret, known_secrets, redacted
from bot.text import escape_github, escape_markdown
from tests.support.signers import with_key


def _in_base64(before: str, text: str) -> str:
    return base64.b64encode(f"{before}{text}:x".encode()).decode()


SECRET = 'p_w "ö+/\\% 8fe0c1'
WRITINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in JSON": json.dumps,
    "in JSON as UTF-8": lambda text: json.dumps(text, ensure_ascii=False),
    "in repr()": repr,
    "in Markdown": escape_markdown,
    "on GitHub": escape_github,
    "in a path": quote,
    "in a URL": lambda text: quote(text, safe=""),
    "in a URL, small": lambda text: re.sub("%..", lambda code: code[0].lower(), quote(text, safe="")),
    "in a form": quote_plus,
    "in hex": lambda text: text.encode().hex(),
    "in HEX": lambda text: text.encode().hex().upper(),
    **{f"in base64 after {before!r}": partial(_in_base64, before) for before in ("", "u", "u:", "us:")},
    "in base64 for URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
}


@pytest.mark.parametrize("writing", WRITINGS)
def test_a_secret_is_redacted_however_it_is_written(monkeypatch: pytest.MonkeyPatch, writing: str) -> None:
    written = WRITINGS[writing](SECRET)
    assert redacted(f"it said {written}!") == f"it said {written}!"
    monkeypatch.setenv("ANY_TOKEN", SECRET)
    said = redacted(f"it said {written}!")
    assert said.startswith("it said ")
    # In base64, the letters at the edges depend on what is beside it.
    assert len(said) <= len("it said ***!") + 12
    assert "***" in said


@settings(max_examples=60, deadline=None)
@given(
    secret=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=12, max_size=90),
    before=st.binary(max_size=4),
    after=st.binary(max_size=4),
)
def test_any_secret_is_found_in_base64_beside_anything(secret: str, before: bytes, after: bytes) -> None:
    secret = secret.strip()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANY_TOKEN", secret)
        written = base64.b64encode(before + secret.encode() + after).decode()
        assert len(secret) < 12 or "***" in redacted(written)


def test_which_variables_hold_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "MY_SECRET", "DB_PASSWORD", "API_KEY"):
        monkeypatch.setenv(name, f"the-{name}")
    monkeypatch.setenv("SHORT_TOKEN", "xyz")
    monkeypatch.setenv("AWS_TOKEN", str(tmp_path))  # where it is, not what it is
    monkeypatch.setenv("https_proxy", "http://me:p%40ss-of-proxy@proxy:3128")
    found = known_secrets()
    secrets = {
        "the-HF_TOKEN",
        "the-MY_SECRET",
        "the-DB_PASSWORD",
        "the-API_KEY",
        "p%40ss-of-proxy",
        "p@ss-of-proxy",
    }
    assert secrets <= {*found}
    assert {"xyz", str(tmp_path)} & {*found} == set()
    assert list(found) == sorted(found, key=len, reverse=True)


@pytest.mark.parametrize("in_file", [False, True])
def test_a_signing_key_is_redacted_line_by_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_file: bool
) -> None:
    pem = with_key().credential.key
    path = tmp_path / "key.pem"
    path.write_text(pem)
    monkeypatch.setenv("AWQ_BOT_SIGNING_KEY", str(path) if in_file else pem)
    for line in pem.splitlines()[1:-1]:
        assert redacted(f"bad line: {line}") == "bad line: ***"
    assert redacted(f"{path}: no file") == f"{path}: no file"


JWT = ".".join(
    base64.urlsafe_b64encode(part).decode().rstrip("=")
    for part in (b'{"alg": "RS256"}', b'{"sub": "repo:you/bot"}', b"signature of it")
)
FORMS = {
    f"hf_{'aB3' * 12}": "***",
    f"hf_jwt_{'aB3' * 12}": "***",
    f"api_org_{'aB' * 17}": "***",
    f"ghp_{'aB3' * 12}": "***",
    f"ghs_{'aB3' * 12}": "***",
    f"github_pat_{'aB3_' * 20}": "***",
    JWT: "***",
    with_key().credential.key.strip(): "***",
    "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49": "***",
    "http://me:pass@proxy:3128/x": "http://***@proxy:3128/x",
    "https://token@[::1]:80": "https://***@[::1]:80",
    "Authorization: Basic bWU6cGFzcw==": "Authorization: ***",
    "{'authorization': 'Bearer abc'}": "{'authorization': '***'}",
    "-H 'x: Bearer 0123456789abcdef'": "-H 'x: Bearer ***'",
    "https://cdn/x?X-Amz-Date=1&X-Amz-Signature=ab12&y=1": "https://cdn/x?X-Amz-Date=1&X-Amz-Signature=***&y=1",
    "/x?sig=ab%2F12 failed": "/x?sig=*** failed",
}


@pytest.mark.parametrize("text", FORMS, ids=[text[:14] for text in FORMS])
def test_what_has_the_form_of_a_secret_is_redacted_unknown(text: str) -> None:
    assert (
        redacted(f"a {text} b" if "\n" not in text else text).removeprefix("a ").removesuffix(" b") == FORMS[text]
    )


@pytest.mark.parametrize(
    "text",
    [
        "hf_mistral_7b_instruct_v0_3_quantized_for_tests",
        "lab/hf_model",
        "https://huggingface.co/lab/model@main",
        "https://github.com/you/bot/.github/workflows/model.yml@refs/heads/main",
        "me@example.org from https://accounts.example.org",
        f"sha256 {'ab' * 32}, upstream-{'12' * 4}-{'34' * 4}",
        "eyJust.a.name",
        "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYI\n-----END PUBLIC KEY-----",
        "Invalid credentials in Authorization header",
        "the bearer of this model",
    ],
)
def test_what_only_resembles_one_stays(text: str) -> None:
    assert redacted(text) == text


def test_errors_are_redacted_when_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they are cut: the beginning of a secret would no longer be known as one."""
    monkeypatch.setenv("ANY_TOKEN", SECRET)
    error = BotError(f"{'x' * 1990} {SECRET}", hint=f"not {SECRET}")
    assert error.message.endswith(" ***")
    assert error.hint == "not ***"
    assert str(error) == error.message
    assert reason_of(ValueError(f"{'x' * 1990} {SECRET}")).endswith(" ***")


def test_a_file_that_holds_a_secret_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORTER_TOKEN", "safetensors")  # a word may be in a file
    monkeypatch.setenv("ANY_TOKEN", SECRET)
    assert not holds_secret(b'{"format": "safetensors"}')
    assert holds_secret(b"\xff" + SECRET.encode() + b"\0")
    assert holds_secret(base64.b64encode(b"x:" + SECRET.encode()))


def test_redacting_takes_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of a megabyte that resembles secrets everywhere."""
    monkeypatch.setenv("ANY_TOKEN", SECRET)
    for text in ("hf_" * 350_000, "eyJ" * 350_000, "://" * 350_000, "-----BEGIN " * 90_000, "Bearer " * 150_000):
        started = time.monotonic()
        redacted(text)
        assert time.monotonic() - started < 2
