"""An engine's environment: installed once by a real pip, started over when it was interrupted, without a token."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bot.errors import EnvironmentProblem
from bot.records import no_progress
from bot.serve.engines import engine_folder, engine_python, is_installed, pip_environment, requirements
from tests.support.engines import ENGINE, write_wheel

VERSIONS = {"torch": "2.13.0", "transformers": "5.23.0", "gptqmodel": "7.6.0"}


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test, and the one folder where pip looks for packages."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


def test_it_is_installed_once_with_exact_pins_and_an_interrupted_one_is_started_over(wheels: Path) -> None:
    assert requirements(ENGINE) == tuple(f"{name}=={version}" for name, version in VERSIONS.items())
    for name, version in VERSIONS.items():
        write_wheel(wheels, name, version)
    left = engine_folder(ENGINE) / "left-over"
    left.parent.mkdir(parents=True)
    left.touch()
    lines: list[tuple[str, int, int, str]] = []
    python = engine_python(ENGINE, lambda *line: lines.append(line))
    assert lines == [(f"install {ENGINE}", done, 1, "environments") for done in (0, 1)]
    assert not left.exists()
    code = "from importlib.metadata import version; print(version('gptqmodel'), version('torch'))"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["7.6.0", "2.13.0"]
    for wheel in wheels.iterdir():
        wheel.unlink()
    assert engine_python(ENGINE, no_progress) == python  # nothing is left to install from


def test_an_install_that_fails_is_named_and_leaves_nothing_that_counts(wheels: Path) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        engine_python(ENGINE, no_progress)
    what, _, reason = caught.value.message.partition("gptqmodel==7.6.0: ")
    assert what == "serve: pip cannot install torch==2.13.0 transformers==5.23.0 "
    assert reason  # in pip's words
    assert "such a version of gptqmodel" in caught.value.hint
    assert not is_installed(ENGINE)


def test_installing_sees_no_token(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_this_test")
    monkeypatch.setenv("MY_KEY", "another-secret-of-this-test")
    found = pip_environment()
    assert not [value for value in found.values() if "secret" in value]
    assert found["PIP_NO_INDEX"] == "1"
