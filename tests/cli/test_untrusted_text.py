"""What upstream wrote, in a terminal, in the log of a workflow, and on a page: it is text and nothing else."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

import pytest

from bot.cli import console, terminal
from bot.cli.console import print_json
from bot.github.environment import annotation
from bot.localhub import LocalHub
from bot.records import Skip, from_json, to_json
from bot.text import one_line, printable, render, without_commands
from tests.cli.conftest import Run
from tests.support import factories
from tests.support.repos import source_files
from tests.support.small_sandbox import CONFIG
from tests.support.watch import BUILTIN_TEXT
from tests.support.workspace import WEIGHTS, Workspace

OVERRIDE = "\N{RIGHT-TO-LEFT OVERRIDE}"
HOSTILE = f"x\x1b[31m\x9b2J\x07{OVERRIDE}\r\n::error title=a::b\n##[error]c\u2028::warning::d"
YAML = json.dumps(HOSTILE)  # a YAML text in double quotes, too


def assert_harmless(printed: str) -> None:
    """For a terminal and for a runner, which reads commands at the beginnings of lines, and `##[` anywhere."""
    assert "error" in printed
    assert printable(printed) == printed
    assert not re.search(r"^\s*::", printed, re.MULTILINE), printed
    assert "##[" not in printed


def config(**changed: object) -> str:
    return json.dumps(CONFIG | changed)


# A model's name -> its changed files.
MODELS: dict[str, dict[str, str | None]] = {
    "licensed": {"README__md": f"---\nlicense: other\nlicense_name: {YAML}\ntags: [{YAML}]\n---\n"},
    "headed": {"config__json": config(architectures=[HOSTILE])},
    "quantized": {"config__json": config(quantization_config={"quant_method": HOSTILE})},
    "typed": {"config__json": config(model_type=HOSTILE)},
    "indexed": {
        "model__safetensors__index__json": json.dumps({"weight_map": {"a": HOSTILE}}),
        "model__safetensors": None,
    },
}


@pytest.fixture
def upstream(with_hub: LocalHub, tmp_path: Path) -> LocalHub:
    """Each model has the text in another place, and the target of the last was made from a repo of that name."""
    for name, changed in MODELS.items():
        files = source_files(model__safetensors=WEIGHTS, README__md="---\nlicense: mit\n---\n")
        changes = {path.replace("__", "."): content for path, content in changed.items()}
        kept = {path: content for path, content in (files | changes).items() if content is not None}
        with_hub.seed(f"lab/{name}", kept)
    with_hub.seed("lab/taken", source_files(model__safetensors=WEIGHTS))
    source = factories.source_provenance()
    made = factories.provenance(files=(factories.published_file(HOSTILE),))
    foreign = to_json(made).replace(json.dumps(source.repo_id), json.dumps(f"lab/{HOSTILE}"))
    with_hub.seed("quantized/taken-awq", {"provenance.json": foreign})
    models = "".join(f"  - lab/{name}\n" for name in (*MODELS, "taken"))
    defaults = BUILTIN_TEXT.replace("{", "{licenses: {allow: [mit]}, ", 1)
    (tmp_path / "watchlist.yaml").write_text(f"publish_to: quantized\n{defaults}models:\n{models}")
    return with_hub


@pytest.mark.usefixtures("upstream")
def test_what_upstream_wrote_prints_as_text(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.jobs.pipeline.find_spec", lambda name: None)  # headers alone decide
    for width in (200, 40):  # where it wraps, the command may begin a line
        for stream in (console.out, console.err):
            monkeypatch.setattr(stream, "width", width)
        for words in (("plan",), ("run",), ("verify", "quantized/taken-awq")):
            code, printed, said = run(*words)
            assert code in (0, 3, 4, 7), said
            assert_harmless(printed + said + " error")
            assert "error title=a" in " ".join((printed + said).split())
    code, printed, _ = run("plan", "--json")
    reasons = " ".join(skip["reason"] for skip in json.loads(printed)["skipped"])
    assert (code, OVERRIDE in reasons) == (0, True), "records are kept as they are"
    assert_harmless(printed)


def test_what_upstream_wrote_is_text_wherever_people_read_it(workspace: Workspace) -> None:
    workspace.seed("Tiny", README__md=f"---\nlicense: other\nlicense_name: {YAML}\n---\n")
    denied = BUILTIN_TEXT.replace("{", "{licenses: {deny: [other]}, ", 1)
    (workspace.root / "watchlist.yaml").write_text(f"publish_to: quantized\n{denied}models: [lab/Tiny]\n")
    ended = workspace.plan()
    [dashboard] = workspace.api.issues.values()
    for page in (ended.summary, dashboard.body):
        assert "error title=" in page
        assert printable(page) == page
    assert ended.annotations == []
    assert printable(ended.everything) == ended.everything
    line = annotation("warning", HOSTILE, title=HOSTILE, file=HOSTILE)
    assert (printable(line), line.count("\n")) == (line, 0)


def test_consoles_and_logs_pass_no_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever forgets to make it one line."""
    monkeypatch.setattr(console.err, "_color_system", None)
    console.err.print(HOSTILE, markup=False, soft_wrap=True)
    terminal.LogLines(console.err, logging.WARNING).emit(
        logging.LogRecord("awq_bot", logging.WARNING, __file__, 1, "%s", (HOSTILE,), None)
    )
    said = capsys.readouterr().err
    assert_harmless(said)
    assert "x[31m2J" in said
    record = logging.LogRecord("awq_bot", logging.INFO, __file__, 1, "%s", (HOSTILE,), None)
    assert printable(terminal.Printable("%(message)s").format(record)) == printable(HOSTILE)


def test_warnings_of_libraries_pass_no_control_characters(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("--version")
    print(HOSTILE, end="\r", file=sys.stderr)
    sys.stderr.write(HOSTILE)
    said = capsys.readouterr().err
    assert said.count("\r") == 3, "as progress bars need it"
    assert_harmless(said.replace("\r", ""))


def test_styles_of_our_own_stay(capsys: pytest.CaptureFixture[str]) -> None:
    coloured = console.Console(force_terminal=True, color_system="standard", width=80)
    coloured.print("[red]a\x1bb[/]", highlight=False)
    assert capsys.readouterr().out == "\x1b[31mab\x1b[0m\n"


def test_json_says_the_same_with_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    skip = Skip(entry=factories.entry(), reason=HOSTILE + "\x7f\U000e0001\ud83d", hint="a → b")
    print_json(skip)
    printed = capsys.readouterr().out
    assert_harmless(printed)
    assert "a → b" in printed
    assert json.loads(printed)["reason"] == skip.reason
    assert from_json(Skip, printed.replace("\\ud83d", "")).entry == skip.entry


def test_templates_insert_no_control_characters() -> None:
    page = render("trouble_issue.md.jinja", headline=HOSTILE, items=[], run_url="")
    assert page.startswith("x[31m2J\n::error")
    facts = dict.fromkeys(("message", "status", "nonce", "endpoint"), HOSTILE + "<b>")
    html = render("hub_error.html.jinja", **facts)
    assert printable(html) == html
    assert "&lt;b&gt;" in html


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("::error::x", ": :error::x"),
        ("a\n \t ::warning::x\n::b", "a\n \t : :warning::x\n: :b"),
        ("std::vector a::b", "std::vector a::b"),
        ("a ##[error]b", "a ## [error]b"),
    ],
)
def test_workflow_commands_are_taken_apart(text: str, safe: str) -> None:
    assert without_commands(text) == safe


def test_a_file_name_that_is_not_utf8_can_be_printed(run: Run, tmp_path: Path) -> None:
    name = str(tmp_path / "missing-\udcff.yaml")
    code, _, said = run("check", "--watchlist", name)
    assert code == 2
    assert "missing-" in said
    assert sys.stdout.errors == "backslashreplace"
    assert one_line(name) != name
