"""What went wrong while bytes were moved, by its own name: huggingface_hub wraps it, hf_xet has words alone."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TypeVar

import httpx2
from huggingface_hub.errors import HfHubHTTPError

Result = TypeVar("Result")

_DISK_IS_FULL = ("no space left", f"os error {errno.ENOSPC}")


class TransferError(Exception):
    """Bytes did not get through, and nobody said more than a line about it. It may go well the next time."""


def told_plainly(request: Callable[[], Result]) -> Result:
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
