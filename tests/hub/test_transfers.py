"""Bytes that do not get through: huggingface_hub and hf_xet say so in errors of many kinds, we in one of ours."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stamina
from huggingface_hub import file_download
from huggingface_hub.utils import _http

from bot.errors import BotError, EnvironmentProblem, PublishError
from bot.hub.publish import Artifact, publish
from bot.hub.pull import pull_source
from bot.hub.session import HubFailsError
from bot.localhub import Fault, LocalHub
from bot.records import Job, no_progress
from tests.support.repos import SOURCE, TARGET, as_bot, release_job, requests, source_files

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
    [(503, HubFailsError, "answers 503"), (403, PublishError, r"may not upload assets/error\.png \(403")],
)
def test_blob_that_is_never_taken_is_an_error_with_a_hint(
    hub: LocalHub, job: Job, artifact: Artifact, status: int, kind: type[BotError], words: str
) -> None:
    hub.faults.add(Fault(path="/uploads/", method="PUT", status=status, times=None))
    with stamina.set_testing(True, attempts=2), pytest.raises(kind, match=words) as caught:
        publish(as_bot(hub), job, artifact, no_progress)
    assert caught.value.exit_code == (8 if status == 503 else 7)
    assert caught.value.hint
    assert len(requests(hub, "PUT", "/uploads/")) == (2 * 6 if status == 503 else 1)
    assert hub.repo(TARGET).settings().private


@pytest.mark.usefixtures("impatient")
def test_blob_that_is_refused_for_a_while_is_sent_again(hub: LocalHub, job: Job, artifact: Artifact) -> None:
    hub.faults.add(Fault(path="/uploads/", method="PUT", status=503, times=7))
    with stamina.set_testing(True, attempts=2):
        assert publish(as_bot(hub), job, artifact, no_progress).new


@pytest.mark.parametrize("error", WORDS, ids=lambda error: type(error).__name__)
def test_sending_that_fails_in_words_is_repeated(
    hub: LocalHub, job: Job, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing(monkeypatch, "huggingface_hub._commit_api", "_upload_lfs_files", [error])
    with stamina.set_testing(True, attempts=2):
        assert publish(as_bot(hub), job, artifact, no_progress).new


def test_full_disk_while_sending_is_named(
    hub: LocalHub, job: Job, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hf_xet keeps notes of what it sends."""
    failing(monkeypatch, "huggingface_hub._commit_api", "_upload_lfs_files", [RuntimeError(FULL)])
    with pytest.raises(EnvironmentProblem, match="No space left on device") as caught:
        publish(as_bot(hub), job, artifact, no_progress)
    assert "disk" in caught.value.hint


# --- fetching -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", WORDS, ids=lambda error: type(error).__name__)
def test_fetching_that_fails_in_words_is_repeated(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    hub.seed(SOURCE, source_files())
    failing(monkeypatch, file_download.__name__, "http_get", [error])
    with stamina.set_testing(True, attempts=2):
        pull_source(as_bot(hub), release_job(hub), tmp_path / "source", no_progress)
    assert (tmp_path / "source" / "model.safetensors").is_file()


@pytest.mark.parametrize("error", WORDS, ids=lambda error: type(error).__name__)
def test_fetching_that_keeps_failing_is_an_environment_problem(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    hub.seed(SOURCE, source_files())
    failing(monkeypatch, file_download.__name__, "http_get", [error] * 100)
    with stamina.set_testing(True, attempts=2), pytest.raises(HubFailsError) as caught:
        pull_source(as_bot(hub), release_job(hub), tmp_path / "source", no_progress)
    assert str(error).splitlines()[0] in caught.value.message
    assert "\n" not in caught.value.message
    assert "again" in caught.value.hint


def test_full_disk_while_fetching_is_named(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.seed(SOURCE, source_files())
    failing(monkeypatch, file_download.__name__, "http_get", [RuntimeError(FULL)])
    with pytest.raises(EnvironmentProblem, match="cannot be written: No space left on device") as caught:
        pull_source(as_bot(hub), release_job(hub), tmp_path / "source", no_progress)
    assert "--work" in caught.value.hint
