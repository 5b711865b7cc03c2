"""Each inference engine in its own environment, installed once per machine, without this project.

Installing uses the network, as pip is set up here, but gets no token: packages may run code when they are built.
What was interrupted is started over.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bot.errors import EnvironmentProblem
from bot.files import cache_folder, disk_errors, locked
from bot.records import Engine, Progress, sha256_of
from bot.text import duration

# Beside the engine itself. torch exactly: where a CPU build of just that version is offered locally, a range would
# fetch CUDA's. vLLM pins its own.
_PINS: Final[Mapping[str, tuple[str, ...]]] = {
    "gptqmodel": ("torch==2.13.0", "transformers==5.23.0"),
    "vllm": (),
}
_COMPLETE: Final = ".complete"
_INSTALL_S: Final = 3600.0
# What pip needs to reach its index, and no more.
_OF_PIP: Final = ("PATH", "HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PROXIES: Final = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


def requirements(engine: Engine) -> tuple[str, ...]:
    """As pip takes them."""
    return (*_PINS[engine.name], f"{engine.name}=={engine.version}")


def engine_folder(engine: Engine) -> Path:
    pins = sha256_of([*requirements(engine), sys.version_info[:2]])[:8]
    return cache_folder("engines") / f"{engine.name}-{engine.version}-{pins}"


def is_installed(engine: Engine) -> bool:
    return (engine_folder(engine) / _COMPLETE).is_file()


def engine_python(engine: Engine, progress: Progress) -> Path:
    """The Python of the engine's environment, which is installed if it is not there.

    Raises EnvironmentProblem when it cannot be installed.
    """
    folder = engine_folder(engine)
    python = folder / "bin" / "python"
    with locked(folder.with_name(f"{folder.name}.lock"), make_parents=True):
        if not is_installed(engine):
            what = f"install {engine}"
            progress(what, 0, 1, "environments")
            with disk_errors(folder):
                _install(engine, folder, python)
                (folder / _COMPLETE).touch()
            progress(what, 1, 1, "environments")
    return python


def _install(engine: Engine, folder: Path, python: Path) -> None:
    _run(engine, [sys.executable, "-m", "venv", "--clear", str(folder)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    _run(engine, [*pip, *requirements(engine)])


def _run(engine: Engine, command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            env=pip_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=_INSTALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _not_installed(engine, f"it took more than {duration(_INSTALL_S)}") from None
    if done.returncode:
        raise _not_installed(engine, last_line(done.stderr))


def pip_environment() -> dict[str, str]:
    """What pip and the packages that it builds see of ours."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _OF_PIP or name.lower() in _PROXIES or name.startswith("PIP_")
    }


def _not_installed(engine: Engine, reason: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"serve: pip cannot install {' '.join(requirements(engine))}: {reason}",
        hint=f"Is there such a version of {engine.name}, and can pip reach a package index from here?",
    )


def last_line(text: str) -> str:
    lines = (line.strip() for line in reversed(text.splitlines()))
    return next((line for line in lines if line), "it says nothing").removeprefix("ERROR: ")
