"""`awq-bot hub`: what it prints is a script that works as printed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import get_session

from bot.cli import terminal
from bot.localhub import LocalHub

ROOT = Path(__file__).parents[2]
LAST_LINE = re.compile(r"# (http://\S+/quantized/my-model-awq)\n")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user's: `awq-bot` and `hf` on PATH, nothing said of a Hub."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "awq-bot").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bot "$@"\n')
    (commands / "awq-bot").chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    return kept | {"PATH": path, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}


@pytest.fixture
def serving(tmp_path: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = ["awq-bot", "hub", "--root", "hub", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as hub:
        yield hub
        hub.send_signal(signal.SIGINT)


@pytest.mark.slow
def test_every_command_that_it_prints_works_as_printed(
    tmp_path: Path, environment: dict[str, str], serving: subprocess.Popen[str]
) -> None:
    shutil.copytree(ROOT / "tests" / "assets" / "llama-tiny", tmp_path / "my-model")
    assert serving.stdout is not None
    printed = ""
    while not (page := LAST_LINE.search(printed)):
        line = serving.stdout.readline()
        assert line, printed
        printed += line
    done = subprocess.run(
        ["bash", "-eux", "-o", "pipefail"],
        input=printed,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    commands = re.findall(r"^\+ (\S+ \S+)", done.stderr, re.MULTILINE)
    assert [command for command in commands if command.startswith(("hf", "awq-bot"))] == [
        "hf upload", "awq-bot check", "awq-bot plan", "awq-bot run", "awq-bot verify",
    ]  # fmt: skip
    assert "published quantized/my-model-awq" in done.stdout
    shown = get_session().get(page[1], headers={"Accept": "text/html"}).text
    assert "perplexity" in shown
    assert 'src="/quantized/my-model-awq/resolve/main/assets/error-by-layer.png"' in shown


def test_in_a_checkout_it_uploads_the_small_model_and_any_namespace_can_be_added(
    with_hub: LocalHub,
) -> None:
    text = terminal.hub_text(with_hub.endpoint, with_hub.token(), with_hub.root, "tests/assets/llama-tiny")
    assert "\nhf upload bot/my-model tests/assets/llama-tiny\n" in text
    accounts = with_hub.root / "tokens.json"
    assert str(accounts) in text
    content = json.loads(accounts.read_text())
    content["users"]["bot"]["orgs"]["my-name"] = "write"
    accounts.write_text(json.dumps(content))
    api = HfApi(endpoint=with_hub.endpoint, token=with_hub.token())
    assert api.create_repo("my-name/model").repo_id == "my-name/model"


def test_a_folder_that_another_process_serves_is_refused(
    tmp_path: Path, environment: dict[str, str], serving: subprocess.Popen[str]
) -> None:
    assert serving.stdout is not None
    assert serving.stdout.readline()
    command = ["awq-bot", "hub", "--root", "hub", "--port", "0"]
    second = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 8
    assert "another process serves this folder" in second.stderr


# What README prints besides: installing (run by tests/workflows/test_five_steps.py), the Hub itself, and what only
# the real Hub has, which is Qwen3-4B and the default data sets at their pinned commits.
ELSEWHERE = re.compile(
    r"git clone|python3\.11 -m venv|pip install|awq-bot (hub$|add Qwen|plan +#|run --work /mnt)", re.MULTILINE
)


@pytest.mark.slow
def test_every_command_that_readme_prints_works_as_printed(
    tmp_path: Path, environment: dict[str, str], serving: subprocess.Popen[str]
) -> None:
    section = (ROOT / "README.md").read_text().split("## From the command line")[1].split("\n## ")[0]
    blocks = "".join(re.findall(r"```console\n(.*?)```", section, re.DOTALL))
    commands = [text for text in re.split(r"^\$ ", blocks, flags=re.MULTILINE) if text]
    assert len(commands) > 10
    assert serving.stdout is not None
    printed = "".join(iter(serving.stdout.readline, "export HF_HUB_DISABLE_XET=1\n"))
    hub = dict(re.findall(r"export (\w+)=(\S+)", printed))
    script = "cd checkout\n" + "".join(text for text in commands if not ELSEWHERE.match(text))
    script = script.replace("http://127.0.0.1:8765", hub["HF_ENDPOINT"]).replace(
        "HF_TOKEN=...", f"HF_TOKEN={hub['HF_TOKEN']}"
    )
    script = script.replace(
        "mkdir ~/awq && cd ~/awq ", "mkdir ~/awq; ln -s ~/checkout/tests ~/awq/tests; cd ~/awq "
    )
    (tmp_path / "checkout").symlink_to(ROOT)
    done = subprocess.run(
        ["bash", "-eux", "-o", "pipefail"],
        input=script,
        cwd=tmp_path,
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = re.findall(r"^\+ ((?:hf|awq-bot) \S+)", done.stderr, re.MULTILINE)
    assert run == [
        "awq-bot init", "awq-bot check", "hf upload", "awq-bot plan", "awq-bot run", "awq-bot verify",
    ]  # fmt: skip
