"""The files around the code: the README's list of commands, the pre-commit hooks, Dependabot."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from bot.cli.app import app

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def read_yaml(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def test_every_package_and_its_files_are_installed() -> None:
    listed = PYPROJECT["tool"]["setuptools"]
    packages = {
        str(path.parent.relative_to(ROOT)).replace("/", ".") for path in (ROOT / "bot").rglob("__init__.py")
    }
    assert set(listed["packages"]) == packages | {"bot.templates"}
    shipped = {
        path
        for package, patterns in listed["package-data"].items()
        for pattern in patterns
        for path in (ROOT / listed["package-dir"].get(package, package.replace(".", "/"))).glob(pattern)
    }
    found = (path for folder in ("bot", "templates") for path in (ROOT / folder).rglob("*") if path.is_file())
    files = {path for path in found if path.suffix != ".py" and path.parent.name != "__pycache__"}
    # What people read and what another machine runs.
    assert {str(path.relative_to(ROOT)) for path in files - shipped} == {
        "bot/watch/architectures.md",
        "templates/relay/Dockerfile",
        "templates/relay/README.md",
        "templates/relay/requirements.txt",
    }


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250


def test_the_readme_has_a_line_for_each_command() -> None:
    commands: Any = typer.main.get_command(app)
    shown = {command.name for command in commands.commands.values() if not command.hidden}
    listed = re.findall(r"^\| `awq-bot ([\w-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(shown)


@pytest.mark.parametrize(
    ("watchlist", "exit_code"),
    [("publish_to: lab\nmodels: [lab/one]\n", 0), ("publish_to: lab\nmodels: [one]\n", 2)],
)
def test_the_pre_commit_hooks_check_a_watchlist(tmp_path: Path, watchlist: str, exit_code: int) -> None:
    [hook] = read_yaml(".pre-commit-hooks.yaml")
    own = next(one for one in read_yaml(".pre-commit-config.yaml")["repos"][0]["hooks"] if one["id"] == hook["id"])
    assert own["entry"] == f".venv/bin/{hook['entry']}"
    assert own["files"] == hook["files"]
    assert re.search(hook["files"], "watchlist.yaml")
    (tmp_path / "watchlist.yaml").write_text(watchlist)
    _, *words = shlex.split(hook["entry"])
    command = [sys.executable, "-m", "bot", *words, "watchlist.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert done.returncode == exit_code


def test_dependabot_leaves_exact_pins_alone_and_sees_every_action() -> None:
    updates = {update["package-ecosystem"]: update for update in read_yaml(".github/dependabot.yml")["updates"]}
    requirements = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    pinned = {requirement.partition("==")[0] for requirement in requirements if "==" in requirement.split(";")[0]}
    # What torch pins is in the lock files alone.
    assert {item["dependency-name"] for item in updates["pip"]["ignore"]} == pinned | {"cuda-*", "nvidia-*"}
    actions = {f"/{path.parent.relative_to(ROOT)}" for path in GITHUB.glob("actions/*/action.yml")}
    assert set(updates["github-actions"]["directories"]) == {"/", *actions}
