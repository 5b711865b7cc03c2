"""`lint` as people and programs call it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bot.cli.app import command
from bot.localhub import LocalHub
from tests.cli.conftest import Run
from tests.support.linted import edit, make_release
from tests.support.release import Release
from tests.support.repos import TARGET


@pytest.fixture
def published(with_hub: LocalHub, tmp_path: Path) -> Release:
    release = make_release(with_hub, tmp_path)
    release.publish()
    return release


def test_a_card_that_is_borne_out_ends_with_0_and_a_count(run: Run, published: Release) -> None:
    code, out, err = run("lint", TARGET, "--revision", published.job.tag)
    assert (code, err) == (0, "")
    assert re.search(r"ok +README\.md +\d+ facts", out)
    assert re.search(rf"{TARGET} at {published.job.tag}: \d+ facts borne out, 0 wrong, 0 not checkable", out)


def test_what_is_wrong_is_a_row_with_its_line_and_ends_with_7(run: Run, published: Release) -> None:
    card = published.hub.files(TARGET)["README.md"].decode()
    changed = card.replace("| 93.5 % |", "| 99.5 % |", 1) + "\nThanks!\n"
    edit(published.hub, TARGET, "README.md", changed.encode())
    code, out, _ = run("lint", TARGET)
    line = changed[: changed.index("| 99.5 %")].count("\n") + 1
    assert code == 7
    assert re.search(rf"WRONG +README\.md:{line} +same most likely next token +99\.5 % +93\.5 %", out)
    assert re.search(r"\? +README\.md:\d+ +Thanks! +awq-bot did not write this", out)
    assert "1 wrong, 2 not checkable" in out


def test_programs_get_every_fact(run: Run, published: Release) -> None:
    code, out, _ = run("lint", TARGET, "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["repo_id"], result["tag"]) == (TARGET, published.job.tag)
    assert {item["status"] for item in result["findings"]} == {"ok"}
    assert {"perplexity (lower is better)", "base_model", "command"} <= {
        item["what"] for item in result["findings"]
    }


def test_a_token_is_not_needed(run: Run, published: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert run("lint", f"{published.hub.endpoint}/{TARGET}")[0] == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((TARGET, "--revision", "none"), 3, "no revision none"),
        (("quantized/none",), 3, "quantized/none: no such repo, or private"),
        (("lab/Tiny",), 7, "it has no provenance.json"),
        (("Tiny",), 2, "'Tiny' is not a model's repo id"),
    ],
)
@pytest.mark.usefixtures("published")
def test_what_cannot_be_looked_at_is_one_line(run: Run, words: tuple[str, ...], code: int, said: str) -> None:
    ended, out, err = run("lint", *words)
    assert (ended, out) == (code, "")
    assert said in err
    assert len(err.splitlines()) <= 3


def test_untrusted_text_of_a_card_is_printed_as_text(run: Run, published: Release) -> None:
    card = published.hub.files(TARGET)["README.md"].decode()
    hostile = "| [red]x[/] ::error:: \x1b[31m 12345 |"
    edit(published.hub, TARGET, "README.md", f"{card}\n{hostile}\n".encode())
    code, out, _ = run("lint", TARGET)
    assert code == 7
    assert "[red]x[/]" in out
    assert "\x1b" not in out


def test_every_command_has_its_options(run: Run, published: Release) -> None:
    """Those of the installed version: the card's `verify` is checked against them."""
    card = published.hub.files(TARGET)["README.md"].decode()
    edit(published.hub, TARGET, "README.md", f"{card}\n```bash\nawq-bot plan --fast\n```\n".encode())
    code, out, _ = run("lint", TARGET)
    assert code == 7
    assert re.search(r"command +--fast +an option of `awq-bot plan`", out)
    assert "lint" in command().commands


def test_notice_takes_one_of_its_options(run: Run) -> None:
    for words in ((), ("--withdrawn", "--remove"), ("--text", " ")):
        code, _, err = run("notice", TARGET, *words)
        assert code == 2
        assert "one of --text TEXT, --withdrawn and --remove is needed" in err
