"""Known vulnerabilities in the pinned versions, as `make audit` prints them, with pip-audit.

It ends with 0 where there are none, and where the advisories cannot be read, which it says. Runs in an environment
that has pip-audit alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

# Advisory -> why it does not concern awq-bot.
ACCEPTED: dict[str, str] = {}

# The other lock files have the versions of constraints.txt; these have CUDA's libraries, and other versions.
FILES = ("constraints.txt", "requirements/quantize.txt", "requirements/audit.txt", "requirements/sbom.txt")
_UNREACHABLE = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "ProxyError", "ServiceError")
_UNKNOWN = "not found on PyPI"


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What a run of pip-audit found. unknown: no answer about these; problem: why there is none about any."""

    found: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    problem: str = ""

    @property
    def is_unreachable(self) -> bool:
        """No advisory was read: an index without them, as mirrors are, knows no package."""
        return not self.known and bool(self.unknown or any(name in self.problem for name in _UNREACHABLE))

    @property
    def is_clean(self) -> bool:
        return not (self.found or self.unknown or self.problem)


def read(answer: str, said: str) -> Looked:
    """answer: the JSON of pip-audit; said: what it printed beside it."""
    try:
        packages = json.loads(answer)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return Looked(problem=(said.strip().splitlines() or ["pip-audit said nothing"])[-1])
    skipped = {each["name"]: each["skip_reason"] for each in packages if "skip_reason" in each}
    checked = [each for each in packages if "skip_reason" not in each]
    return Looked(
        found=tuple(line for each in checked for line in _vulnerabilities(each)),
        known=tuple(each["name"] for each in checked),
        unknown=tuple(name for name, why in skipped.items() if _UNKNOWN in why),
        problem="; ".join(f"{name}: {why}" for name, why in skipped.items() if _UNKNOWN not in why),
    )


def _vulnerabilities(package: dict[str, Any]) -> list[str]:
    what = f"{package['name']} {package['version']}"
    return [
        f"{what}: {each['id']}, mended in {', '.join(each['fix_versions']) or 'no version'}"
        for each in package["vulns"]
        if not {each["id"], *each.get("aliases", ())} & ACCEPTED.keys()
    ]


def _look(file: str) -> Looked:
    """No package is installed, and none resolved: every version is listed."""
    pinned = "--no-deps" if file == FILES[0] else "--require-hashes"
    options = ("--format=json", "--progress-spinner=off", "--disable-pip", pinned, f"--requirement={file}")
    command = [sys.executable, "-m", "pip_audit", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return read(done.stdout, done.stderr)


def verdict(runs: dict[str, Looked]) -> tuple[int, list[str]]:
    """The exit code, and what to print."""
    if all(looked.is_unreachable for looked in runs.values()):
        asked = sum(len(looked.unknown) for looked in runs.values())
        why = next(
            (looked.problem for looked in runs.values() if looked.problem), f"it knows none of {asked} pins"
        )
        warning = "::warning::" if os.environ.get("GITHUB_ACTIONS") == "true" else ""
        return 0, [f"{warning}nothing was checked: the advisories of the index cannot be read here ({why})"]
    lines = []
    for what, looked in runs.items():
        lines += [f"{what}: {line}" for line in looked.found]
        lines += [f"{what}: {name}: the index does not know this version" for name in looked.unknown]
        lines += [f"{what}: {looked.problem}"] if looked.problem else []
    checked = len({name for looked in runs.values() for name in looked.known})
    bad = not all(looked.is_clean for looked in runs.values())
    return int(bad), lines or [f"{checked} packages, none with a known vulnerability"]


def main() -> int:
    code, lines = verdict({file: _look(file) for file in FILES})
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
