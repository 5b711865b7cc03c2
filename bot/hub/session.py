"""One way to call a Hub: endpoint and tokens, what is retried, errors that a person can act on."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2
import stamina
from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    OIDCError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers
from huggingface_hub.utils._http import default_client_factory
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from bot.errors import BotError, EnvironmentProblem

Result = TypeVar("Result")

_DISK_IS_FULL = ("no space left", f"os error {errno.ENOSPC}")


class TransferError(Exception):
    """Bytes did not get through, and nobody said more than a line about it. It may go well the next time."""


def unwrap_transfer_error(request: Callable[[], Result]) -> Result:
    """The request's result.

    Raises what huggingface_hub wrapped (HfHubHTTPError, httpx2.RequestError), OSError with its number when the
    disk is full, and TransferError for all else that is told in words alone; other errors as they came.
    """
    try:
        return request()
    except (RuntimeError, OSError) as error:
        plain = _plain(error)
        if plain is error:
            raise
        raise plain from None


def _plain(error: RuntimeError | OSError) -> Exception:
    if not _is_words_alone(error):
        return error
    if isinstance(error.__cause__, (HfHubHTTPError, httpx2.RequestError)):
        return error.__cause__
    text = str(error)
    if any(words in text.lower() for words in _DISK_IS_FULL):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return TransferError((text.splitlines() or [type(error).__name__])[0])


def _is_words_alone(error: RuntimeError | OSError) -> bool:
    """Python's own classes, as hf_xet takes them, without a number of the system's.

    huggingface_hub's own errors, many of which are an OSError too, say by their class what happened.
    """
    if isinstance(error, OSError):
        return error.errno is None and type(error).__module__ in ("builtins", "hf_xet")
    return type(error) is RuntimeError


DEFAULT_ENDPOINT = "https://huggingface.co"
ATTEMPTS = 6
WORKER = "hub-request"
CONNECT_S = 20.0
SILENCE_S = 60.0
WORK_S = 600.0  # how long a Hub may take over a commit, or over putting the parts of a large file together
_LONGEST_WAIT_S = 330.0  # the Hub counts its limits over five minutes
_UNREACHABLE_S = 45.0
_LATER = "Nothing was lost. Run it again later."


class HubFailsError(EnvironmentProblem):
    """The Hub keeps failing on one request; it may still answer for another repo."""


@dataclass(frozen=True, slots=True)
class Hub:
    """A Hub and our ways in. The write token is asked for by publishing only; no token is ever printed.

    oidc_resource: what the workflow's identity is exchanged for a token of: a repo to publish to, or an account
    whose gated models may be read.
    """

    endpoint: str
    read_token: str | None = field(default=None, repr=False)
    write_token: str | None = field(default=None, repr=False)
    create_token: str | None = field(default=None, repr=False)
    oidc_resource: str | None = None

    @classmethod
    def from_environment(cls) -> Hub:
        """HF_ENDPOINT, HF_TOKEN, HF_WRITE_TOKEN falling back to HF_TOKEN, HF_CREATE_TOKEN, HF_OIDC_RESOURCE.

        Raises EnvironmentProblem.
        """
        read = _token("HF_TOKEN")
        return cls(
            _endpoint(),
            read,
            _token("HF_WRITE_TOKEN") or read,
            _token("HF_CREATE_TOKEN"),
            _oidc_resource(),
        )

    @property
    def by_identity(self) -> bool:
        """Whether publishing goes by the workflow's identity; a write token is not looked at then."""
        return "/" in (self.oidc_resource or "")

    @property
    def reader(self) -> HfApi:
        # False, not None: a token that somebody once stored on this machine is not ours to use. Without any, the
        # workflow's identity reads the target that it may write, or an account's gated models.
        return HfApi(endpoint=self.endpoint, token=self.read_token or self.oidc_resource is not None)

    @property
    def onlooker(self) -> HfApi:
        """As `reader`, but never by the workflow's identity."""
        return HfApi(endpoint=self.endpoint, token=self.read_token or False)

    @property
    def writer(self) -> HfApi:
        # True: the client asks for a token at each request, and exchanges the identity anew in time.
        return HfApi(endpoint=self.endpoint, token=True if self.by_identity else self.write_token or False)

    @property
    def creator(self) -> HfApi:
        """Creates repos and changes their settings."""
        return HfApi(endpoint=self.endpoint, token=self.create_token or self.write_token or False)


def _endpoint() -> str:
    # A slash at the end would be there twice in every request.
    endpoint = (os.environ.get("HF_ENDPOINT", "").strip() or DEFAULT_ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise EnvironmentProblem(
            f"HF_ENDPOINT is no web address: {endpoint!r}", hint=f"Unset it, or set it to {DEFAULT_ENDPOINT}."
        )
    return endpoint


def _token(name: str) -> str | None:
    # The HTTP library would print a token that is no header value.
    token = os.environ.get(name, "").strip()
    if token and not re.fullmatch("[!-~]+", token):
        raise EnvironmentProblem(
            f"{name} holds characters that no token has", hint="Copy the token again, without what surrounds it."
        )
    return token or None


def _oidc_resource() -> str | None:
    # huggingface_hub reads the variable itself, so nothing may be mended here.
    resource = os.environ.get("HF_OIDC_RESOURCE", "")
    if resource and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", resource, re.ASCII):
        raise EnvironmentProblem(
            f"HF_OIDC_RESOURCE names no repo: {resource!r}", hint="Set it to the target: your-namespace/Model-awq."
        )
    return resource or None


def call(request: Callable[[], Result], *, attempts: int | None = None) -> Result:
    """The request's result, tried again while the Hub is busy or the line is bad.

    For requests that may be sent twice. What huggingface_hub retries by itself is thereby tried more often, never
    less; attempts: 1 where somebody waits for the answer. Raises EnvironmentProblem when the endpoint cannot be
    reached, refuses the token or keeps failing; other errors as they came, by their own names (`transfers.py`).
    """
    attempts = attempts or ATTEMPTS
    tries = f", after {attempts} tries" if attempts > 1 else ""
    try:
        for attempt in stamina.retry_context(
            on=_patience(), attempts=attempts, timeout=None, wait_initial=0.3, wait_jitter=0.3, wait_max=30
        ):
            with attempt:
                return unwrap_transfer_error(request)
    except OfflineModeIsEnabled:
        raise EnvironmentProblem(
            "HF_HUB_OFFLINE is set, so no Hub may be asked", hint="Unset it for this command."
        ) from None
    except OIDCError:
        raise EnvironmentProblem(
            "HF_OIDC_RESOURCE is set, and this job may not ask for an id-token",
            hint="Give the job `permissions: id-token: write` on GitHub Actions, or unset HF_OIDC_RESOURCE.",
        ) from None
    except httpx2.RequestError as error:
        raise EnvironmentProblem(
            f"the Hub{_host(error)} cannot be reached: {error or type(error).__name__}",
            hint="Check HF_ENDPOINT, the network and https://status.huggingface.co.",
        ) from None
    except TransferError as error:
        raise HubFailsError(f"bytes did not get through{tries}: {error}", hint=_LATER) from None
    except HfHubHTTPError as error:
        if problem := _problem_of_everything(error, tries):
            raise problem from None
        raise
    raise AssertionError("stamina either returns or raises")


def _client() -> httpx2.Client:
    """As huggingface_hub makes its own, for all its requests."""
    client = default_client_factory()
    client.event_hooks["request"].append(_limit_silence)
    return client


def _limit_silence(request: httpx2.Request) -> None:
    """huggingface_hub would wait for ever on a silent line: by default, and in `model_info` in any case."""
    answer_s = SILENCE_S if request.method in ("GET", "HEAD") else WORK_S
    limits = {"connect": CONNECT_S, "read": answer_s, "write": SILENCE_S, "pool": SILENCE_S}
    asked = {name: limit for name, limit in request.extensions.get("timeout", {}).items() if limit is not None}
    request.extensions["timeout"] = limits | asked


set_client_factory(_client)


@contextmanager
def workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for requests side by side. Whoever interrupts does not wait for answers that are still to come."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=WORKER)
    try:
        yield pool
    finally:
        pool.shutdown(wait=not isinstance(sys.exception(), KeyboardInterrupt), cancel_futures=True)


def _patience() -> Callable[[Exception], bool | float]:
    """`wait_before_retry`, until a Hub that cannot be reached was not for so long.

    huggingface_hub tries some requests for half a minute itself, and six times that would help nobody.
    """
    since: float | None = None

    def decide(error: Exception) -> bool | float:
        nonlocal since
        if isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout)):
            now = time.monotonic()
            since = since or now
            if now - since > _UNREACHABLE_S:
                return False
        return wait_before_retry(error)

    return decide


def wait_before_retry(error: Exception) -> bool | float:
    """Whether, or after how many seconds, the same request may succeed."""
    # Among the latter: all threads share one client, and huggingface_hub closes it when one could not connect.
    if isinstance(error, (httpx2.RequestError, TransferError)):
        return True
    if not isinstance(error, HfHubHTTPError):
        return False
    status = status_of(error)
    if status == 429:
        return max(0.0, min(_reset_s(error), _LONGEST_WAIT_S))
    return status in (500, 502, 503, 504)


def _reset_s(error: HfHubHTTPError) -> float:
    limit = parse_ratelimit_headers(error.response.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0
    try:
        return float(error.response.headers.get("Retry-After", 5))
    except ValueError:
        return 5.0


def status_of(error: HfHubHTTPError) -> int:
    return error.response.status_code if error.response is not None else 0


def is_missing(error: Exception) -> bool:
    """GatedRepoError is a RepositoryNotFoundError in huggingface_hub, and is not missing."""
    return isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError)


def _host(error: httpx2.RequestError) -> str:
    try:
        return f" at {error.request.url.host}"
    except RuntimeError:  # the error came before there was a request
        return ""


def _problem_of_everything(error: HfHubHTTPError, tries: str) -> BotError | None:
    """Errors that every further request would meet too, and those that only time mends."""
    status = status_of(error)
    message = error.response.headers.get("X-Error-Message", "").lower() if error.response is not None else ""
    # An anonymous request for a repo that is not there gets a 401 as well, which speaks of neither.
    if status == 401 and ("credentials" in message or "token" in message):
        return EnvironmentProblem(
            "the Hub refuses the token",
            hint="It was revoked, has expired or was mistyped: put a valid one into HF_TOKEN, and into"
            " HF_WRITE_TOKEN if it is used.",
        )
    if status == 429:
        return EnvironmentProblem(f"the Hub limits our requests{tries}", hint=_LATER)
    if status >= 500:
        return HubFailsError(f"the Hub answers {status}{tries}", hint=_LATER)
    return None


def _tell_retry(details: RetryDetails) -> None:
    """One line for each wait, which may take minutes. Never a query: links to files are signed there."""
    error = details.caused_by
    said = str(error).partition("\n")[0] or type(error).__name__
    if isinstance(error, HfHubHTTPError):
        asked = error.response.request
        path = asked.url.raw_path.decode().partition("?")[0]
        said = f"{asked.method} {path} was answered with {status_of(error)}"
    logging.getLogger("awq_bot").warning("%s; the Hub is asked again in %.1f s", said, details.wait_for)


set_on_retry_hooks([_tell_retry])
