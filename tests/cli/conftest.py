"""The command line in this process, a Hub that it talks to, and a GPU that it finds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bot.cli import app, console
from bot.localhub import LocalHub

Run = Callable[..., tuple[int, str, str]]
L4 = "NVIDIA L4, 570.86.15, 23034"  # as nvidia-smi prints it


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Calls the command line in this process; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    # They asked for the terminal's width when they were made, wherever that was.
    monkeypatch.setattr(console.out, "width", 200)
    monkeypatch.setattr(console.err, "width", 200)
    monkeypatch.setattr("signal.signal", lambda *args: None)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["awq-bot", *words])
        with pytest.raises(SystemExit) as ended:
            app.main()
        printed = capsys.readouterr()
        code = ended.value.code
        return code if isinstance(code, int) else 0, printed.out, printed.err

    return call


@pytest.fixture
def with_hub(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", hub.token())
    return hub


def only_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str | None) -> None:
    """The one tool that is found. answer: what it prints; there is none, if None."""
    folder.mkdir()
    if answer is not None:
        tool = folder / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho '{answer}'\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
