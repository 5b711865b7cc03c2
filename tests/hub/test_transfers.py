"""Transfers that fail: huggingface_hub and hf_xet raise errors of many kinds, awq-bot raises its own."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stamina
from huggingface_hub import file_download
from huggingface_hub.utils import _http

from bot.errors import BotError, EnvironmentProblem, PublishError
from bot.hub.pull import pull_source
from bot.hub.session import HubFailsError
from bot.localhub import Fault, LocalHub
from bot.records import no_progress
from tests.support.release import Release
from tests.support.repos import SOURCE, as_bot, release_job, requests, source_files

# As hf_xet 1.8 words them; the local Hub does not speak its protocol.
WORDS = [
    RuntimeError("Task error: Download task failed\nat line 7"),
    ConnectionError("error sending request for url"),
    TimeoutError("operation timed out"),
    PermissionError("token refresh failed"),
]
FULL = "Task error: I/O error: No space left on device (os error 28)"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub sends a blob six times itself, and waits 23 seconds in between."""
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))


def failing(monkeypatch: pytest.MonkeyPatch, module: str, name: str, errors: list[Exception]) -> None:
    """Each call runs into the next error, and goes on as it should when there are none left."""
    real = getattr(__import__(module, fromlist=[name]), name)

    def transfer(*args: Any, **kwargs: Any) -> object:
        if errors:
            raise errors.pop(0)
        return real(*args, **kwargs)

    monkeypatch.setattr(f"{module}.{name}", transfer)


# --- sending ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [(503, HubFailsError, "answers 503"), (403, PublishError, r"not permitted to upload assets/error\.png \(403")],
)
def test_refused_blob_is_an_error_with_a_hint(
    hub: LocalHub, release: Release, status: int, kind: type[BotError], words: str
) -> None:
    hub.faults.add(Fault(path="/uploads/", method="PUT", status=status, times=None))
    with stamina.set_testing(True, attempts=2):
        assert release.fails(words, kind).exit_code == (8 if status == 503 else 7)
    assert len(requests(hub, "PUT", "/uploads/")) == (2 * 6 if status == 503 else 1)
    assert release.private


@pytest.mark.usefixtures("impatient")
def test_blob_that_is_refused_for_a_while_is_sent_again(hub: LocalHub, release: Release) -> None:
    hub.faults.add(Fault(path="/uploads/", method="PUT", status=503, times=7))
    with stamina.set_testing(True, attempts=2):
        assert release.publish().new


@pytest.mark.parametrize("error", WORDS, ids=lambda error: type(error).__name__)
def test_upload_error_that_is_text_only_is_retried(
    release: Release, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing(monkeypatch, "huggingface_hub._commit_api", "_upload_lfs_files", [error])
    with stamina.set_testing(True, attempts=2):
        assert release.publish().new


def test_full_disk_while_sending_is_named(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    """hf_xet writes notes about what it sends."""
    failing(monkeypatch, "huggingface_hub._commit_api", "_upload_lfs_files", [RuntimeError(FULL)])
    assert "disk" in release.fails("No space left on device", EnvironmentProblem).hint


# --- fetching -----------------------------------------------------------------------------------------------


def pull(hub: LocalHub, folder: Path) -> Path:
    hub.seed(SOURCE, source_files())
    pull_source(as_bot(hub), release_job(hub), folder, no_progress)
    return folder / "model.safetensors"


@pytest.mark.parametrize("error", WORDS, ids=lambda error: type(error).__name__)
def test_download_error_that_is_text_only_is_retried(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing(monkeypatch, file_download.__name__, "http_get", [error])
    with stamina.set_testing(True, attempts=2):
        assert pull(hub, tmp_path / "source").is_file()
    failing(monkeypatch, file_download.__name__, "http_get", [error] * 100)
    (tmp_path / "source" / "model.safetensors").unlink()
    with stamina.set_testing(True, attempts=2), pytest.raises(HubFailsError, match="transfer failed") as caught:
        pull(hub, tmp_path / "source")
    assert str(error).splitlines()[0] in caught.value.message


@pytest.mark.parametrize(
    ("name", "error"),
    [("http_get", RuntimeError(FULL)), ("_chmod_and_move", OSError(errno.ENOSPC, "No space left on device"))],
    ids=["hf_xet", "huggingface_hub"],
)
def test_full_disk_while_downloading_is_named(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    failing(monkeypatch, file_download.__name__, name, [error] * 9)
    with pytest.raises(EnvironmentProblem, match="cannot be written: No space left on device") as caught:
        pull(hub, tmp_path / "source")
    assert "--work" in caught.value.hint
