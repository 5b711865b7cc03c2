"""Requests to a Hub: endpoint and tokens, what is retried, and errors that a person can act on."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import httpx2
import stamina
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    OIDCError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from bot.errors import BotError, EnvironmentProblem, reason_of
from bot.hub import UNUSABLE, environment, is_loopback
from bot.hub.client import RETRIED, UnansweredError
from bot.hub.environment import DEFAULT_ENDPOINT
from bot.hub.signing import SigningCredential
from bot.records import WorkflowRun

Result = TypeVar("Result")

# All that is tried again for one request: huggingface_hub's own retries are off, or each of ours would be six. The
# waits add up to about 36 s.
ATTEMPTS = 6
_FIRST_WAIT_S, _WAIT_GROWS = 0.3, 3
WORKER = "hub-request"  # the name of the threads
# Rate limits are counted over five minutes: https://huggingface.co/docs/hub/rate-limits
_MAX_WAIT_S = 330.0
# A Hub that answered no request for so long is down, and each further request is tried once.
_DOWN_S = 30.0
_NEW_OUTAGE_S = 60.0  # without a request, failed or not
_LATER = "Nothing was lost. Run it again later."
# Of a ValueError that is about an answer, not about our arguments.
_MALFORMED = (
    "improperly formatted",
    "Malformed response",
    "Invalid server response",
    "LFS batch API returned errors",
)
# What OpenSSL says of a certificate where the clocks differ: https://docs.openssl.org/3.0/man1/openssl-verification-options/
_OTHER_TIME = re.compile("certificate (is not yet valid|has expired)")
_DISK_IS_FULL = ("no space left", f"os error {errno.ENOSPC}")


class HubFailsError(EnvironmentProblem):
    """The Hub keeps failing on one request; it may still answer for another repo."""


class TransferError(Exception):
    """A transfer failed, and all that is known is one line of text. A retry may succeed."""


class UnreadableError(TransferError):
    """An answer is not of the form that the Hub's API has, such as a page of a proxy that answers in its place."""


@dataclass(frozen=True, slots=True)
class Hub:
    """A Hub and our credentials for it. Tokens are never printed. signing: None where releases are not signed.

    oidc_resource: what the workflow's OIDC identity gets a token for: a repo to publish to, or an account whose
    gated models can be read. See https://huggingface.co/docs/hub/trusted-publishers
    run: the workflow run that we are, which is named in what it publishes.
    """

    endpoint: str
    read_token: str | None = field(default=None, repr=False)
    write_token: str | None = field(default=None, repr=False)
    create_token: str | None = field(default=None, repr=False)
    oidc_resource: str | None = None
    signing: SigningCredential | None = field(default=None, repr=False)
    run: WorkflowRun | None = None

    @classmethod
    def from_environment(cls) -> Hub:
        """Reads the variables HF_*; the write token is HF_WRITE_TOKEN or HF_TOKEN. Raises EnvironmentProblem."""
        if problem := next(environment_problems(), None):
            raise problem
        read = _variable("HF_TOKEN")
        write, create = _variable("HF_WRITE_TOKEN") or read, _variable("HF_CREATE_TOKEN")
        # With a trailing slash every URL would contain two.
        endpoint = (_variable("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        identity, signing = _variable("HF_OIDC_RESOURCE"), SigningCredential.from_environment()
        return cls(endpoint, read, write, create, identity, signing)

    @property
    def trusted_publishing(self) -> bool:
        """Whether Trusted Publishers are used to publish; a write token is ignored then."""
        return "/" in (self.oidc_resource or "")

    @property
    def reader(self) -> HfApi:
        # False, not None: None would use a token that `hf auth login` stored on this machine. True lets the
        # workflow's OIDC identity read the target that it can write, or an account's gated models.
        return HfApi(endpoint=self.endpoint, token=self.read_token or self.oidc_resource is not None)

    @property
    def token_reader(self) -> HfApi:
        """Like `reader`, but never with the workflow's OIDC identity."""
        return HfApi(endpoint=self.endpoint, token=self.read_token or False)

    @property
    def writer(self) -> HfApi:
        # True: huggingface_hub looks for a token at each request, and exchanges the OIDC identity again in time.
        return HfApi(endpoint=self.endpoint, token=True if self.trusted_publishing else self.write_token or False)

    @property
    def creator(self) -> HfApi:
        """Creates repos and changes their settings."""
        return HfApi(endpoint=self.endpoint, token=self.create_token or self.write_token or False)


def environment_problems() -> Iterator[EnvironmentProblem]:
    """One for each variable of the environment that keeps this process from using a Hub."""
    yield from environment.problems({**UNUSABLE, **os.environ})
    if constants.is_offline_mode():
        yield _offline()


def _offline() -> EnvironmentProblem:
    name = next(
        (name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if name in os.environ), "HF_HUB_OFFLINE"
    )
    return EnvironmentProblem(f"{name} is set, so no Hub can be reached", hint="Unset it for this command.")


def _variable(name: str) -> str | None:
    return os.environ.get(name, "").strip() or None


# --- one request --------------------------------------------------------------------------------------------


def call(request: Callable[[], Result], *, attempts: int | None = None) -> Result:
    """The request's result, retried while the Hub is busy or the connection fails.

    For requests that may be sent twice. attempts: 1 when a person waits for the answer. Raises EnvironmentProblem
    when the endpoint cannot be reached, refuses the token or keeps failing; other errors unwrapped.
    """
    tries = ""
    try:
        for attempt in stamina.retry_context(
            on=outage.wait_before_retry,
            attempts=attempts or ATTEMPTS,
            timeout=None,
            wait_initial=_FIRST_WAIT_S,
            wait_exp_base=_WAIT_GROWS,
            wait_jitter=0.3,
            wait_max=30,
        ):
            tries = f", after {attempt.num} tries" if attempt.num > 1 else ""
            with attempt:
                result = unwrap_transfer_error(request)
                outage.end()
                return result
    except OfflineModeIsEnabled:
        raise _offline() from None
    except OIDCError:
        raise EnvironmentProblem(
            "HF_OIDC_RESOURCE is set, and this job is not permitted to request an id-token",
            hint="Give the job `permissions: id-token: write` on GitHub Actions, or unset HF_OIDC_RESOURCE.",
        ) from None
    except httpx2.RequestError as error:
        raise _unreachable(error) from None
    except UnreadableError as error:
        raise HubFailsError(
            f"an answer is not one of the Hub's API{tries}: {error}",
            hint="Check HF_ENDPOINT. Does a proxy or a login page answer in its place?",
        ) from None
    except TransferError as error:
        raise HubFailsError(f"the transfer failed{tries}: {error}", hint=_LATER) from None
    except HfHubHTTPError as error:
        if problem := _general_problem(error, tries):
            raise problem from None
        raise
    raise AssertionError("stamina either returns or raises")


def unwrap_transfer_error(request: Callable[[], Result]) -> Result:
    """The request's result.

    Raises what huggingface_hub wrapped (HfHubHTTPError, httpx2.RequestError), OSError with its errno when the disk
    is full, and TransferError for other failures that are text only; other errors as they came.
    """
    try:
        return request()
    except UnansweredError as error:
        raise error.__cause__ or error from None
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        if not _is_of_an_answer(error):
            raise
        raise UnreadableError(reason_of(error)) from None
    except (RuntimeError, OSError) as error:
        cause = _unwrapped(error)
        if cause is error:
            raise
        raise cause from None


def _is_of_an_answer(error: Exception) -> bool:
    """Whether huggingface_hub could not read an answer, as where a proxy answers in place of the Hub.

    It checks the form of few. Errors of its own classes, and those that it raises for our arguments, are none.
    """
    if isinstance(error, json.JSONDecodeError):
        return True
    if isinstance(error, HFValidationError | HfHubHTTPError) or error.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    is_about_arguments = type(error) is ValueError and not any(words in str(error) for words in _MALFORMED)
    return not is_about_arguments and str(frame.f_globals.get("__name__")).startswith("huggingface_hub.")


def _unwrapped(error: RuntimeError | OSError) -> Exception:
    if not _is_text_only(error):
        return error
    if isinstance(error.__cause__, (HfHubHTTPError, httpx2.RequestError)):
        return error.__cause__
    text = str(error)
    if any(words in text.lower() for words in _DISK_IS_FULL):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return TransferError(reason_of(error))


def _is_text_only(error: RuntimeError | OSError) -> bool:
    """Python's own exception classes without an errno, as hf_xet raises them.

    huggingface_hub's own errors, many of which are OSErrors too, say by their class what happened.
    """
    if isinstance(error, OSError):
        return error.errno is None and type(error).__module__ in ("builtins", "hf_xet")
    return type(error) is RuntimeError


def status_of(error: HfHubHTTPError) -> int:
    return error.response.status_code if error.response is not None else 0


def is_missing(error: Exception) -> bool:
    """GatedRepoError is a RepositoryNotFoundError in huggingface_hub, but the repo exists."""
    return isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError)


def _unreachable(error: httpx2.RequestError) -> EnvironmentProblem:
    said, endpoint = reason_of(error), ""
    with suppress(RuntimeError):  # raised when the error came before there was a request
        endpoint = f"{error.request.url.scheme}://{error.request.url.netloc.decode()}"
    hint = "Check HF_ENDPOINT, the network and https://status.huggingface.co."
    if _OTHER_TIME.search(said):
        hint = f"Check this machine's clock, which says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, then HF_ENDPOINT."
    elif is_loopback(endpoint):
        hint = "Is `awq-bot hub` running? Otherwise check HF_ENDPOINT."
    problem = "refuses the connection" if "refused" in said else f"cannot be reached: {said}"
    hub = f"the Hub at {endpoint}" if endpoint else "the Hub"
    return EnvironmentProblem(f"{hub} {problem}", hint=hint)


def _general_problem(error: HfHubHTTPError, tries: str) -> BotError | None:
    """Errors that every further request would meet too, and those that only time can solve."""
    status = status_of(error)
    message = error.response.headers.get("X-Error-Message", "").lower() if error.response is not None else ""
    # An anonymous request for a missing repo is answered with 401 too, with another message.
    if status == 401 and ("credentials" in message or "token" in message):
        return EnvironmentProblem(
            "the Hub refuses the token",
            hint="It was revoked, has expired or was mistyped: set HF_TOKEN, and HF_WRITE_TOKEN, to a valid one.",
        )
    if status == 429:
        return EnvironmentProblem(f"the Hub limits our requests{tries}", hint=_LATER)
    if status >= 500:
        return HubFailsError(f"the Hub answers {status}{tries}", hint=_LATER)
    return None


# --- retries ------------------------------------------------------------------------------------------------


def wait_before_retry(error: Exception) -> bool | float:
    """Whether, or after how many seconds, the same request may succeed."""
    # RequestError includes a closed client: all threads share one, and huggingface_hub closes it after a failed
    # connection.
    if isinstance(error, (httpx2.RequestError, TransferError)):
        return True
    if not isinstance(error, HfHubHTTPError):
        return False
    status = status_of(error)
    if status == 429 or (status in RETRIED and "Retry-After" in error.response.headers):
        return max(0.0, min(_reset_s(error), _MAX_WAIT_S))
    return status in RETRIED


def _reset_s(error: HfHubHTTPError) -> float:
    limit = parse_ratelimit_headers(error.response.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0
    try:
        return float(error.response.headers.get("Retry-After", 5))
    except ValueError:
        return 5.0


class _Outage:
    """How long all requests of this process have failed, so that a plan of many models does not wait for each."""

    def __init__(self) -> None:
        self._since = self._last = float("-inf")

    def wait_before_retry(self, error: Exception) -> bool | float:
        """As the function of this name, but False for a Hub that is down."""
        wait, now = wait_before_retry(error), time.monotonic()
        if wait is not True:
            if wait is False and isinstance(error, HfHubHTTPError):
                self.end()
            return wait
        if now - self._last > _NEW_OUTAGE_S:
            self._since = now
        self._last = now
        return now - self._since <= _DOWN_S

    def end(self) -> None:
        self._last = float("-inf")


outage = _Outage()


def _log_retry(details: RetryDetails) -> None:
    """One line for each wait, which may take minutes. Never a query: links to files are signed there."""
    error = details.caused_by
    said = _unreachable(error).message if isinstance(error, httpx2.RequestError) else reason_of(error)
    if isinstance(error, HfHubHTTPError):
        asked = error.response.request
        path = asked.url.raw_path.decode().partition("?")[0]
        said = f"{asked.method} {path} was answered with {status_of(error)}"
    said = f"{said}; retry {details.retry_num} of {ATTEMPTS - 1}"
    now, before = time.monotonic(), _logged.get(said, -1.0)
    # Parallel requests to a Hub that cannot be reached fail together; one line is enough.
    if now - before >= 1.0 or not isinstance(error, httpx2.RequestError):
        _logged[said] = now
        logging.getLogger("awq_bot").warning("%s in %.1f s", said, details.wait_for)


_logged: dict[str, float] = {}
set_on_retry_hooks([_log_retry])


# --- threads ------------------------------------------------------------------------------------------------


@contextmanager
def workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for parallel requests. After Ctrl-C, answers that are still to come are not waited for."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=WORKER)
    try:
        yield pool
    finally:
        pool.shutdown(wait=not isinstance(sys.exception(), KeyboardInterrupt), cancel_futures=True)
