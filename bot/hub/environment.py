"""Environment variables that the Hub's client and the HTTP libraries read, checked before they read them.

huggingface_hub parses many of them once, while it is imported, and the HTTP libraries fail on others at the first
request, each with an exception of its own. So this module imports neither.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from urllib.parse import urlsplit

from bot.errors import EnvironmentProblem

DEFAULT_ENDPOINT = "https://huggingface.co"
_PROXIES = ("http", "https", "socks5", "socks5h")  # what httpx2 speaks
_TRUE, _FALSE = ("1", "on", "yes", "true"), ("0", "off", "no", "false")

# What is said of a value; None when it can be used.
Rule = Callable[[str], "str | None"]


def take_out(environment: MutableMapping[str, str]) -> dict[str, str]:
    """Remove what cannot be used, and empty values, which GitHub Actions passes for variables that are not set.

    Returns the removed values that `problems` has to name.
    """
    removed = {}
    for name, rule in (_RULES | _IGNORED).items():
        value = environment.pop(name, "").strip()
        if value and not rule(value):
            environment[name] = value
        elif value and name in _RULES:
            removed[name] = value
    return removed


def problems(values: Mapping[str, str]) -> Iterator[EnvironmentProblem]:
    """One for each variable that cannot be used. Values of tokens and proxies are not shown: secrets."""
    for name, rule in (_RULES | _OURS).items():
        if (value := values.get(name, "").strip()) and (reason := rule(value)):
            yield EnvironmentProblem(f"{name} {reason}", hint=_HINTS.get(rule, "Unset it, or correct it."))


# --- one rule for each kind ---------------------------------------------------------------------------------


def _url(value: str) -> str | None:
    return None if _is_url(value, ("http", "https")) else f"is not a URL: {value!r}"


def _endpoint(value: str) -> str | None:
    """Its URL is written into records and summaries, and a password in it would take the place of the token."""
    return _url(value) or ("has a user name or password in it" if "@" in urlsplit(value).netloc else None)


def _proxy(value: str) -> str | None:
    # As in httpx2, curl and requests, http:// may be left out.
    url = value if "://" in value else f"http://{value}"
    scheme = url.partition("://")[0].lower()
    if scheme not in _PROXIES:
        return f"has the scheme {scheme!r}; a proxy is {', '.join(f'{name}://' for name in _PROXIES)}"
    return None if _is_url(url, _PROXIES) else "is not the URL of a proxy"


def _is_url(value: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(value)
        plain = value.isprintable() and " " not in value
        return plain and parts.scheme.lower() in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _token(value: str) -> str | None:
    return None if re.fullmatch("[!-~]+", value) else "contains characters that no token has"


def _repo(value: str) -> str | None:
    return None if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value, re.ASCII) else f"is not a repo: {value!r}"


def _whole_number(value: str) -> str | None:
    return None if value.isascii() and value.isdecimal() else f"is not a whole number: {value!r}"


def _positive(value: str) -> str | None:
    return _whole_number(value) or (None if int(value) else "is 0")


def _switch(value: str) -> str | None:
    return None if value.lower() in (*_TRUE, *_FALSE) else f"is neither 1 nor 0: {value!r}"


def _certificates(value: str) -> str | None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=value)
    except FileNotFoundError:
        return f"names a file that does not exist: {value}"
    except ssl.SSLError:
        return f"names a file without certificates in PEM format: {value}"
    except (OSError, ValueError) as error:
        return f"names a file that cannot be read: {value}: {getattr(error, 'strerror', None) or error}"
    return None


def _certificate_folder(value: str) -> str | None:
    return None if Path(value).is_dir() else f"names a folder that does not exist: {value}"


def _bundle(value: str) -> str | None:
    """requests takes a file or a folder."""
    return None if Path(value).is_dir() else _certificates(value)


def _folder(value: str) -> str | None:
    path = Path(os.path.expandvars(value)).expanduser()
    try:
        there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        usable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    except OSError:
        usable = False
    return None if usable else f"names a folder that cannot be written: {value}"


_RULES: dict[str, Rule] = {
    "HF_ENDPOINT": _endpoint,
    # Both spellings are in use, and either wins somewhere.
    **{spelled: _proxy for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY") for spelled in (name, name.lower())},
    "HF_OIDC_RESOURCE": _repo,
    "SSL_CERT_FILE": _certificates,
    "SSL_CERT_DIR": _certificate_folder,
    "REQUESTS_CA_BUNDLE": _bundle,
    "CURL_CA_BUNDLE": _bundle,
    **dict.fromkeys(("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT", "AWQ_BOT_PARENT"), _whole_number),
    **dict.fromkeys(("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_XET_CACHE"), _folder),
    **dict.fromkeys(
        (
            "HF_HUB_OFFLINE",
            "TRANSFORMERS_OFFLINE",
            "HF_HUB_DISABLE_XET",
            "HF_HUB_DISABLE_TELEMETRY",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN",
            "HF_HUB_DISABLE_SYMLINKS",
            "HF_XET_HIGH_PERFORMANCE",
            "HF_DEBUG",
            "HUGGINGFACE_CO_STAGING",
        ),
        _switch,
    ),
}
# rich raises ValueError, or prints nothing; without them it asks the terminal.
_IGNORED: dict[str, Rule] = dict.fromkeys(("COLUMNS", "LINES"), _positive)
# Read by awq-bot alone, or no danger to who else reads them.
_OURS: dict[str, Rule] = {
    **dict.fromkeys(("HF_TOKEN", "HF_WRITE_TOKEN", "HF_CREATE_TOKEN"), _token),
}
_HINTS: dict[Rule, str] = {
    _endpoint: f"Unset it, or set it to {DEFAULT_ENDPOINT}; credentials are in HF_TOKEN.",
    _token: "Copy the token again, without spaces or quotes.",
    _repo: "Set it to the target: your-namespace/Model-awq.",
}
