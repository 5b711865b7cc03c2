"""What GitHub passes to a step, and its answers: outputs, summary, and commands that no text can inject."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bot.errors import EnvironmentProblem
from bot.github.environment import MAX_SUMMARY_BYTES, Actions, Commands, annotation
from bot.records import WorkflowRun
from tests.support.workflow_steps import workflow_commands


def read_outputs(path: Path) -> dict[str, str]:
    """As GitHub's runner reads the file: `name<<word`, lines, word."""
    found, lines = {}, path.read_text().split("\n")
    while lines:
        head = lines.pop(0)
        if not head:
            continue
        name, word = head.split("<<", 1)
        end = lines.index(word)
        found[name] = "\n".join(lines[:end])
        del lines[: end + 1]
    return found


def test_outputs_are_read_back_whatever_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "output"
    values = {
        "text": "a\nb<<EOF\nquantize=evil\nEOF\n",
        "matrix": {"include": [{"name": "$(rm -rf /) `x` \n::set-output name=a::b é"}]},
        "count": 3,
        "flag": False,
    }
    Actions(output=path).set_outputs(values)
    found = read_outputs(path)
    assert set(found) == set(values)
    assert found["text"] == values["text"]
    assert json.loads(found["matrix"]) == values["matrix"]
    assert (found["count"], found["flag"]) == ("3", "false")
    path.unlink()
    with pytest.raises(EnvironmentProblem, match="outputs of this step are larger"):
        Actions(output=path).set_outputs({"a": "x" * 600_000, "b": "é" * 250_000})
    assert not path.exists()


def test_a_summary_is_cut_at_a_line_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "summary"
    actions = Actions(summary=path)
    for _ in range(3):
        actions.add_summary("".join(f"| line {number} ü |\n" for number in range(30_000)))
    text = path.read_text()
    assert len(text.encode()) <= MAX_SUMMARY_BYTES
    assert "The rest is cut" in text
    assert all(line.endswith(" |") for line in text.splitlines() if line.startswith("| line"))


def test_a_summary_shows_no_token_even_where_markdown_escapes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    path = tmp_path / "summary"
    Actions(summary=path).add_summary("a hf_secret_value and hf\\_secret\\_value")
    assert path.read_text() == "a *** and ***"


def test_a_summary_that_cannot_be_written_is_a_fault_of_the_machine(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="summary: cannot be written: No such file"):
        Actions(summary=tmp_path / "missing" / "summary").add_summary("text")


def test_on_a_terminal_nothing_is_written(tmp_path: Path) -> None:
    Actions().set_outputs({"a": 1})
    Actions().add_summary("text")
    assert list(tmp_path.iterdir()) == []
    commands = Commands(Actions())
    assert [*commands.opening(), *commands.annotation("error", "x"), *commands.closing()] == []


def test_a_run_is_read_from_github_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "GITHUB_ACTIONS": "true",
        "GITHUB_API_URL": "https://ghe.example/api/v3/",
        "GITHUB_SERVER_URL": "https://ghe.example",
        "GITHUB_REPOSITORY": "someone/bot",
        "GITHUB_RUN_ID": "12",
        "GITHUB_RUN_ATTEMPT": "3",
        "GITHUB_TOKEN": "ghs_secret",
        "GITHUB_WORKFLOW_REF": "someone/bot/.github/workflows/watch.yml@refs/heads/main",
    }.items():
        monkeypatch.setenv(name, value)
    actions = Actions.from_environment()
    assert actions.api_url == "https://ghe.example/api/v3"
    assert actions.run_url == "https://ghe.example/someone/bot/actions/runs/12"
    assert (actions.run_name, actions.workflow, actions.inside) == ("12.3", "watch.yml", True)
    assert "ghs_secret" not in repr(actions)


RUN = {
    "GITHUB_ACTIONS": "true",
    "GITHUB_REPOSITORY": "someone/bot",
    "GITHUB_RUN_ID": "12",
    "GITHUB_RUN_ATTEMPT": "3",
    "GITHUB_SHA": "ab" * 20,
    "GITHUB_WORKFLOW_REF": "someone/bot/.github/workflows/watch.yml@refs/heads/main",
}


def test_a_run_is_named_as_provenance_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in RUN.items():
        monkeypatch.setenv(name, value)
    assert Actions.from_environment().run == WorkflowRun(
        repository="someone/bot",
        run_id=12,
        attempt=3,
        workflow_ref="someone/bot/.github/workflows/watch.yml@refs/heads/main",
        sha="ab" * 20,
        url="https://github.com/someone/bot/actions/runs/12/attempts/3",
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"GITHUB_ACTIONS": ""},
        {"GITHUB_RUN_ID": ""},
        {"GITHUB_RUN_ATTEMPT": "x"},
        {"GITHUB_SHA": "main"},
        {"GITHUB_SERVER_URL": "http://ghe.example"},
        {"GITHUB_WORKFLOW_REF": "mallory/bot/.github/workflows/watch.yml@refs/heads/main"},
    ],
)
def test_a_run_that_readers_would_refuse_is_not_named(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str]
) -> None:
    for name, value in (RUN | changed).items():
        monkeypatch.setenv(name, value)
    assert Actions.from_environment().run is None


def pull_request(repository: str | None, number: object = 5) -> str:
    head = {"repo": {"full_name": repository} if repository else None}
    return json.dumps({"pull_request": {"number": number, "head": head}})


@pytest.mark.parametrize(
    ("event", "number"),
    [
        (pull_request("someone/bot"), 5),
        (pull_request("mallory/bot"), None),
        (pull_request(None), None),
        (pull_request("someone/bot", number="5; rm"), None),
        *((text, None) for text in ("{}", "[]", '{"pull_request": "text"}', "{", None)),
    ],
)
def test_only_a_pull_request_of_this_repository_is_its_own(
    tmp_path: Path, event: str | None, number: int | None
) -> None:
    path = tmp_path / "event.json"
    if event is not None:
        path.write_text(event)
    assert Actions(repository="someone/bot", event_path=path).own_pull_request() == number
    assert Actions(repository="someone/bot").own_pull_request() is None


# --- workflow commands ----------------------------------------------------------------------------------------


def test_an_annotation_is_one_line_whatever_it_says() -> None:
    assert annotation("error", "no") == "::error::no"
    made = annotation("warning", "50 %\r\nof it", title="a, b: c")
    assert made == "::warning title=a%2C b%3A c::50 %25%0Aof it"
    made = annotation("error", "m::n", file="a,b:c%\n.yaml", line=3)
    assert made == "::error file=a%2Cb%3Ac%25%0A.yaml,line=3::m::n"


def test_only_our_own_annotations_are_read_as_commands() -> None:
    commands = Commands(Actions(inside=True))
    untrusted = ["::set-output name=a::b", "  ::add-path::/tmp", "::error::theirs", "::stop-commands::x", "::x::"]
    log = [*commands.opening(), *untrusted, *commands.annotation("error", "ours"), *untrusted, *commands.closing()]
    after = "::notice::later"
    read = [item for item in workflow_commands("\n".join([*log, after])) if item[0] != "add-mask"]
    assert read == [("error", "", "ours"), ("notice", "", "later")]


def test_tokens_are_masked_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_WRITE_TOKEN", "hf_a%token")
    monkeypatch.setenv("SHORT_TOKEN", "xyz")
    lines = list(Commands(Actions(inside=True)).opening())
    assert "::add-mask::hf_a%25token" in lines
    assert not any("xyz" in line for line in lines)  # no letter of a random token, which is hexadecimal
    assert lines[-1].startswith("::stop-commands::")
    assert lines[-1] != list(Commands(Actions(inside=True)).opening())[-1]  # no one can guess it


def test_a_long_message_is_cut_and_a_token_in_it_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "ghs_0123456789")
    assert len(annotation("error", "x" * 10_000)) < 4096
    assert annotation("error", "with ghs_0123456789", title="ghs_0123456789") == "::error title=***::with ***"
