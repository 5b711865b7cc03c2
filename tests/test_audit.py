"""What `make audit` makes of the answers of pip-audit 2.10: it never passes where something was not looked up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import audit
from tests.support.audit import Looked, read, verdict
from tests.workflows.deployment import PIP

ROOT = Path(__file__).parents[1]
CLEAN = {"name": "rich", "version": "15.0.0", "vulns": []}
BROKEN = {
    "name": "jinja2",
    "version": "2.4.1",
    "vulns": [{"id": "PYSEC-2014-8", "fix_versions": ["2.7.2"], "aliases": ["CVE-2014-1402"], "description": "x"}],
}
UNKNOWN = {"name": "tuf", "skip_reason": "Dependency not found on PyPI and could not be audited: tuf (7.0.1)"}
# As printed without a network.
SAID = "Traceback (most recent call last):\n  ...\nrequests.exceptions.ConnectionError: HTTPSConnectionPool(...)\n"


def looked(*packages: dict[str, Any]) -> Looked:
    return read(json.dumps({"dependencies": packages, "fixes": []}), "")


@pytest.mark.parametrize(
    ("found", "code", "line"),
    [
        (looked(CLEAN), 0, "1 packages, none with a known vulnerability"),
        (looked(CLEAN, BROKEN), 1, "a.txt: jinja2 2.4.1: PYSEC-2014-8, mended in 2.7.2"),
        (looked(CLEAN, UNKNOWN), 1, "a.txt: tuf: the index does not know this version"),
        (looked({"name": "x", "skip_reason": "it is broken"}), 1, "a.txt: x: it is broken"),
        (
            read("", "ERROR:pip_audit._cli:duplicate requirements"),
            1,
            "a.txt: ERROR:pip_audit._cli:duplicate requirements",
        ),
        (read("", ""), 1, "a.txt: pip-audit said nothing"),
    ],
)
def test_it_fails_for_a_vulnerability_and_for_what_was_not_looked_up(found: Looked, code: int, line: str) -> None:
    assert verdict({"a.txt": found}) == (code, [line])


@pytest.mark.parametrize(
    "found", [looked(UNKNOWN), read("", SAID)], ids=["an index without advisories", "no network"]
)
def test_it_says_that_nothing_was_checked_where_no_advisory_can_be_read(
    found: Looked, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, [line] = verdict({"a.txt": found, "b.txt": looked(UNKNOWN)})
    assert (code, line.startswith("nothing was checked")) == (0, True)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert verdict({"a.txt": found})[1][0].startswith("::warning::nothing was checked")
    # An answer about one file is an answer: then the other is a failure.
    assert verdict({"a.txt": found, "b.txt": looked(CLEAN)})[0] == 1


def test_an_accepted_advisory_is_left_out_by_any_of_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "ACCEPTED", {"CVE-2014-1402": "no template is from elsewhere"})
    assert looked(BROKEN).is_clean


@pytest.mark.slow
def test_make_audit_looks_up_every_pin_or_says_that_it_cannot(tmp_path: Path) -> None:
    """With the real tool, installed by hash."""
    words = ["make", "audit", f"PYTHON={sys.executable}", f"AUDIT={tmp_path / 'venv'}"]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | PIP, capture_output=True, text=True, check=False)
    said = done.stdout.splitlines()[-1]
    pins = len((ROOT / "constraints.txt").read_text().splitlines()) - 1
    if done.returncode == 0 and not said.startswith("nothing was checked"):
        assert int(said.split()[0]) >= pins
    else:
        assert done.returncode == 0 or "mended in" in done.stdout, done.stdout + done.stderr
