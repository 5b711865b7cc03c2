"""requirements/*.txt, which the workflows install: the tested versions, each file by its hash."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Of each lock file the extras that it installs.
EXTRAS = {
    "plan": {"actions", "sign"},
    "publish": {"sign"},
    "quantize": {"quantize"},
    "refresh": {"quantize", "sign"},
    "tasks": {"tasks"},
}
# What is no part of the bot's environment: the group of pyproject.toml that it installs.
GROUPS = {"build": "build", "audit": "audit", "sbom": "sbom", "relay": "relay"}
RELAY = ROOT / "templates" / "relay" / "requirements.txt"  # a Space is made of that folder alone
CUDA = re.compile(r"cuda-|nvidia-")  # torch's CUDA build pins them; the tested set has its CPU build
HERE = {"python_version": "3.11", "python_full_version": "3.11.9"}


@cache
def pins(name: str) -> dict[str, tuple[Requirement, tuple[str, ...]]]:
    """By package: its line, and its hashes. A line of another form fails."""
    text = (RELAY if name == "relay" else ROOT / "requirements" / f"{name}.txt").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "")
    found: dict[str, tuple[Requirement, tuple[str, ...]]] = {}
    for line in text.splitlines():
        asked, *hashes = re.split(r" +--hash=", line)
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), line[:80]
        requirement = Requirement(asked)
        found[canonicalize_name(requirement.name)] = requirement, tuple(hashes)
    return found


def constraints() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def asked(name: str) -> list[Requirement]:
    if name in GROUPS:
        return [Requirement(line) for line in PROJECT["dependency-groups"][GROUPS[name]]]
    optional = PROJECT["project"]["optional-dependencies"]
    lines = [*PROJECT["project"]["dependencies"], *(line for extra in EXTRAS[name] for line in optional[extra])]
    return [Requirement(line) for line in lines]


def version(requirement: Requirement) -> str:
    [pin] = requirement.specifier
    assert pin.operator == "=="
    return pin.version


def is_for_linux(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(
        HERE | {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    )


def test_make_lock_writes_every_lock_file_and_each_is_known_here() -> None:
    written = re.findall(r"--output-file \S*?(\w+)(?:/requirements)?\.txt", (ROOT / "Makefile").read_text())
    on_disk = {path.stem for path in (ROOT / "requirements").iterdir()} | {RELAY.parent.name}
    assert set(written) == on_disk == EXTRAS.keys() | GROUPS.keys()


@pytest.mark.parametrize("name", [*EXTRAS, "build"])
def test_a_lock_file_has_the_versions_of_the_constraints(name: str) -> None:
    versions = constraints()
    for package, (requirement, _) in pins(name).items():
        if CUDA.match(package) or not is_for_linux(requirement):
            assert package not in versions or version(requirement) == versions[package]
        else:
            assert version(requirement).removesuffix("+cpu") == versions[package], package


@pytest.mark.parametrize("name", [*EXTRAS, *GROUPS])
def test_a_lock_file_has_all_that_is_asked_for_and_a_hash_of_each(name: str) -> None:
    locked = pins(name)
    for wanted in asked(name):
        requirement, _ = locked[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version(requirement)), str(wanted)
    assert all(hashes for _, hashes in locked.values())


def test_a_lock_file_holds_no_more_than_its_jobs_need() -> None:
    assert not {"torch", "transformers", "autoawq", "pygithub", "lm-eval"} & pins("publish").keys()
    assert not {"torch", "transformers", "autoawq", "lm-eval"} & pins("plan").keys()
    assert not {"pygithub", "lm-eval", "model-signing"} & pins("quantize").keys()
    assert not {"torch", "autoawq", "pygithub"} & pins("tasks").keys()
    assert not [package for package in pins("refresh") if CUDA.match(package)]
    assert version(pins("refresh")["torch"][0]).endswith("+cpu")


def installs(text: str) -> list[str]:
    """Every call of pip or uv that installs something."""
    commands = re.split(r"&&|\n", text.replace("\\\n", " "))
    return [" ".join(command.split()) for command in commands if "pip install " in command]


def test_workflows_install_nothing_that_is_not_checked_against_its_hash() -> None:
    files = [*GITHUB.glob("workflows/*.yml"), *GITHUB.glob("actions/*/action.yml"), GITHUB / "runner/Dockerfile"]
    files.append(RELAY.parent / "Dockerfile")
    found = [(path.name, command) for path in files for command in installs(path.read_text())]
    assert len(found) >= 7
    for name, command in found:
        offline = "--no-deps" in command and ("--no-index" in command or "--offline" in command)
        assert "--require-hashes" in command or offline, command
        # pip and uv fetch what builds a package without looking at hashes.
        unbuilt = "--no-build-isolation" in command or "--only-binary=:all:" in command
        assert unbuilt or (name == "Dockerfile" and "/uv pip" in command), command
    assert "UV_NO_BUILD_ISOLATION=1" in (GITHUB / "runner/Dockerfile").read_text()


def test_every_job_installs_a_lock_file_that_is_there() -> None:
    used: dict[str, set[str]] = {}
    for path in sorted(GITHUB.glob("workflows/*.yml")):
        for job, body in yaml.safe_load(path.read_text())["jobs"].items():
            for step in body.get("steps", ()):
                if step.get("uses") == "$/.github/actions/setup":
                    used.setdefault(step["with"]["lock"], set()).add(f"{path.name} {job}")
    assert used == {
        "plan": {
            "ci.yml watchdog",
            "pull-request.yml plan",
            "status.yml build",
            "watch.yml plan",
            "watch.yml propose",
            "watch.yml report",
        },
        "publish": {"model.yml publish"},
        "quantize": {"model.yml quantize", "model-on-runner.yml quantize"},
        "refresh": {"watch.yml refresh"},
    }


def test_the_image_has_the_uv_that_writes_the_lock_files() -> None:
    found = re.search(r"^ARG UV_VERSION=(.+)$", (GITHUB / "runner/Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    assert found[1] == constraints()["uv"]
