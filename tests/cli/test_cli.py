"""The command line: what it prints to which stream, and how it exits."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bot.cli import app, console
from bot.errors import ERRORS_BY_EXIT_CODE
from bot.jobs.folder import JobDir
from bot.localhub import Fault, LocalHub
from tests.cli.conftest import L4, Run, only_nvidia_smi
from tests.support import factories
from tests.support.engines import ENGINE, served
from tests.support.repos import source_files
from tests.support.watch import BUILTIN_TEXT
from tests.support.workspace import WEIGHTS

ROOT = Path(__file__).parents[2]

WATCHLIST = f"publish_to: quantized\n{BUILTIN_TEXT}models:\n  - lab/small\n"


@pytest.fixture(autouse=True)
def watchlist(tmp_path: Path) -> Path:
    path = tmp_path / "watchlist.yaml"
    path.write_text(WATCHLIST)
    return path


def verbs(group: Any, *path: str) -> Iterator[tuple[str, ...]]:
    yield path
    for name, verb in getattr(group, "commands", {}).items():
        yield from verbs(verb, *path, name)


VERBS = tuple(verbs(app.command()))


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_fits_80_columns_and_breaks_no_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
) -> None:
    monkeypatch.setattr(console.out, "width", 80)
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(*verb, "--help")
    assert code == 0
    lines = [line.rstrip() for line in out.splitlines()]
    assert all(len(line) <= 80 for line in lines)
    assert not re.search(r"\[/?bold\]|\[/\]|<bool>", out)
    prose = out.partition("\n╭")[0].splitlines()[2:]
    for line, after in itertools.pairwise(item.strip() for item in prose):
        # A line ends where the next word would not fit: nowhere else, unless it ends a paragraph.
        assert not line or not after or len(f" {line} {after.split()[0]}") > 78, line


def test_help_groups_the_verbs_and_names_the_variables(run: Run) -> None:
    code, out, _ = run()
    assert code == 0
    panels = ("Watchlist", "Run", "One stage of a job", "Tools")
    assert re.findall(r"╭─ (.+?) ─", out) == ["Options", *panels]
    watchlist = out.partition("─ Watchlist ─")[2].partition("╰")[0]
    assert re.findall(r"│ (\w+) ", watchlist) == ["init", "add", "check"]
    for name in ("HF_TOKEN", "HF_WRITE_TOKEN", "HF_ENDPOINT"):
        assert name in out


def test_the_shell_completes_verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"_AWQ_BOT_COMPLETE": "complete_bash", "COMP_WORDS": "awq-bot pl", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "bot"]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["plan"]), done.stderr


def test_every_verbs_help_has_an_example() -> None:
    without = {name for name, verb in app.command().commands.items() if "Example: " not in verb.help}
    assert without == {"actions", "layers", "trial"}  # a group, and what only child processes call


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        ("plann", 2, "plan"),
        ("check watchlist.yaml", 2, "See `awq-bot check --help`."),
        ("actions nothing", 2, "See `awq-bot actions --help`."),
        ("run --verbose", 2, "comes before the command: awq-bot --verbose"),
        ("quantize --method gram", 2, "Invalid value for '--method': 'gram' is not one of"),
        ("quantize --samples 8", 2, "Invalid value for '--samples'"),
        ("quantize --samples 4097", 2, "Invalid value for '--samples'"),
        ("quantize --seq-len 8", 2, "Invalid value for '--seq-len'"),
        ("check --watchlist nowhere.yaml", 2, "awq-bot init"),
        ("add lab/small --watchlist nowhere.yaml", 2, "awq-bot init"),
        ("plan --only lab/other", 2, "lab/other is not on watchlist.yaml"),
        ("run --only lab/other", 2, "lab/other is not on watchlist.yaml"),
        ("create-target lab/unknown", 2, "lab/unknown is not on watchlist.yaml"),
        ("card --job nope", 2, "awq-bot run"),
        ("quantize", 2, "quantize needs --source and --out, or --job"),
        ("evaluate", 2, "evaluate needs --source and --quantized, or --job"),
        ("quantize --source model --out made --method gram", 2, "'awq+gptq', 'awq'"),
        ("--log-file nowhere/bot.log check", 2, "--log-file nowhere/bot.log: No such file"),
        ("--log-file . check", 2, "--log-file .: Is a directory"),
        ("quantize --job nope", 2, "nope: no job.json"),
        ("serve --job nope", 2, "nope: no job.json"),
        ("evaluate --job nope", 2, "nope: no job.json"),
        ("trial --job nope", 2, "nope: no job.json"),
        ("verify quantized/none-awq", 3, "quantized/none-awq"),
        ("verify quantized/foreign-awq", 7, "quantized/foreign-awq"),
        ("verify none-awq", 2, "'none-awq' is not a model's repo id"),
        ("verify http://localhost/quantized/none-awq/tree/main", 3, "quantized/none-awq: no such repo"),
    ],
)
def test_what_cannot_be_done_ends_with_its_code_and_a_hint(
    run: Run, tmp_path: Path, with_hub: LocalHub, words: str, code: int, part: str
) -> None:
    with_hub.seed("quantized/foreign-awq", {"README.md": "hello"})
    ended, out, err = run(*words.split())
    assert ended == code
    assert part in out + err
    assert words.startswith("verify quantized/foreign") or "hint:" in err
    assert not (tmp_path / "nope").exists()


def test_serve_shows_how_engines_compare_or_that_there_are_none(
    run: Run, tmp_path: Path, with_hub: LocalHub
) -> None:
    jobdir = JobDir(tmp_path / "job")
    jobdir.store(factories.job())
    jobdir.store(factories.quantized())
    jobdir.store(factories.report())
    code, out, _ = run("serve", "--job", "job")
    assert (code, out.strip()) == (0, "nothing: its entry names no engine under `serve`")
    jobdir.store(factories.job(factories.entry(serve=(ENGINE,))))
    jobdir.store(factories.report(served=(served(),)))
    code, out, _ = run("serve", "--job", "job")
    assert (code, "gptqmodel 7.6.0: 0.0081 nats from ours on average" in out) == (0, True)
    code, out, _ = run("serve", "--job", "job", "--json")
    assert (code, json.loads(out)[0]["tokens"]) == (0, 2044)


def test_check_counts_the_models(run: Run) -> None:
    code, out, _ = run("check")
    assert code == 0
    assert "1 model, no mistakes" in out
    assert "lab/small → quantized/small-awq" in out


def test_plan_prints_records_for_programs_and_reasons_for_people(run: Run, with_hub: LocalHub) -> None:
    code, out, _ = run("plan", "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["jobs"] == []
    assert plan["skipped"][0]["reason"].startswith("missing")
    code, out, _ = run("plan")
    assert code == 0
    assert "refused" in out
    assert json.loads(run("plan", "--only", "lab/small", "--json")[1]) == plan | {"only": "lab/small"}


def test_a_bug_in_the_bot_stops_no_other_model(
    run: Run, tmp_path: Path, watchlist: Path, with_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("small", "other"):
        with_hub.seed(f"lab/{name}", source_files(model__safetensors=WEIGHTS))
    watchlist.write_text(WATCHLIST + "  - lab/other\n")

    def broken(*_: object) -> None:
        raise KeyError("layers")

    monkeypatch.setattr("bot.jobs.stages.pull", broken)
    code, out, err = run("--log-file", "bot.log", "run")
    assert code == 1
    for name in ("lab/small", "lab/other"):
        assert f"{name}: unexpected KeyError: 'layers'" in err
        assert name in out
    assert "report it" in err
    assert "Traceback" not in err
    assert (tmp_path / "bot.log").read_text().count("Traceback") == 2


def test_a_hub_that_is_not_there_is_an_environment_problem(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("bot.hub.session.ATTEMPTS", 1)
    code, _, err = run("plan")
    assert code == 8
    assert "HF_ENDPOINT" in err


def test_create_target_takes_sources_and_targets_and_prints_what_it_did(
    run: Run, watchlist: Path, with_hub: LocalHub
) -> None:
    watchlist.write_text(WATCHLIST + "  - lab/other\n")
    for name in ("lab/small", "lab/other"):
        with_hub.seed(name, source_files())
    code, out, _ = run("create-target", "lab/small")
    assert code == 0
    assert "quantized/small-awq" in out
    assert " private " in out
    assert not with_hub.store.exists("quantized/other-awq")
    code, out, _ = run("create-target", "quantized/other-awq", "--json")
    assert [item["done"] for item in json.loads(out)] == [["created, private"]]
    assert "nothing" in run("create-target")[1]


def test_create_target_exits_with_the_code_of_what_failed(
    run: Run, with_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_hub.seed("lab/small", source_files())
    monkeypatch.setenv("HF_TOKEN", with_hub.token(role="read"))
    code, out, _ = run("create-target")
    assert code == 7
    assert "not permitted to create the repo" in out
    assert "HF_CREATE_TOKEN" in out


def test_doctor_finds_a_token_that_may_only_read(
    run: Run, with_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", with_hub.token(role="read"))
    code, out, _ = run("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert code == 8
    assert checks["endpoint"]["status"] == "ok"
    assert checks["write to quantized"]["status"] == "failed"
    assert "role write" in checks["write to quantized"]["fix"]
    assert checks["versions"]["status"] == "ok", checks["versions"]
    assert "account" not in checks  # asked of runners only


@pytest.mark.parametrize(("gpu", "code"), [(L4, 0), (None, 8)], ids=["L4", "no GPU"])
def test_doctor_exits_with_8_on_a_runner_without_a_gpu_alone(
    run: Run, tmp_path: Path, with_hub: LocalHub, monkeypatch: pytest.MonkeyPatch, gpu: str | None, code: int
) -> None:
    only_nvidia_smi(tmp_path / "tools", monkeypatch, gpu)
    ended, out, _ = run("doctor", "--json")
    assert (ended, {check["status"] for check in json.loads(out)} <= {"ok", "warning"}) == (0, True), out
    assert run("doctor", "--runner")[0] == code


def test_an_unexpected_file_error_names_the_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run("demo", "--root", "file/demo")
    assert code == 8
    assert "file/demo: Not a directory" in err
    assert "hint:" in err
    assert "Traceback" not in err
    assert "Traceback" in run("--verbose", "demo", "--root", "file/demo")[2]


def test_what_needs_torch_says_so_where_there_is_none_and_downloads_nothing(
    run: Run, tmp_path: Path, with_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_hub.seed("lab/small", source_files(model__safetensors=WEIGHTS))
    monkeypatch.setattr(console, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    for words in ("quantize --source model --out made", "evaluate --source model --quantized made", "demo", "run"):
        code, _, err = run(*words.split())
        assert (code, "torch is not installed" in err, "[quantize]" in err) == (8, True, True), words
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("words", [(), ("--verbose",), ("--log-file", "bot.log")])
def test_a_busy_hub_is_reported_once_on_stderr(run: Run, with_hub: LocalHub, words: tuple[str, ...]) -> None:
    with_hub.faults.add(Fault(path="lab/small", status=503))
    code, out, err = run(*words, "plan")
    assert code == 0
    assert err.count("was answered with 503; retry 1 of 5 in") == 1
    assert "503" not in out


def test_check_names_every_mistake_with_its_line_and_the_fix_and_without_colours(watchlist: Path) -> None:
    watchlist.write_text(WATCHLIST + "  - repo_id: a/b\n    gatee: {}\n  - repo_id: c\n")
    command = [sys.executable, "-m", "bot", "check", "--watchlist", str(watchlist)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"{watchlist}:6: unknown key 'gatee'",
        "  help: Did you mean 'gate'?",
        f"{watchlist}:7: repo_id: c is not valid",
        "  help: A repo id is `owner/name`, as in the model's URL.",
        "2 mistakes",
    ]


def test_the_readme_installs_every_extra_before_it_types_a_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    steps = (ROOT / "README.md").read_text().partition("## From the command line")[2]
    installed, extras = steps.partition("$ pip install -c constraints.txt '.[")[::2]
    assert "$ awq-bot" not in installed
    # What only `tasks:` and signing need is said where these are explained.
    assert set(extras.partition("]")[0].split(",")) == set(project["optional-dependencies"]) - {"tasks", "sign"}


def test_hints_install_from_a_checkout_and_name_extras_that_there_are() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    source = "".join(path.read_text() for path in (ROOT / "bot").rglob("*.py"))
    assert "awq-bot[" not in source
    assert {"quantize", "actions"} <= set(re.findall(r"constraints\.txt '\.\[(\w+)\]", source)) <= set(extras)
    assert console.EXTRAS.keys() <= set(extras)


def test_the_readme_lists_the_exit_codes() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    row = next(number for number, line in enumerate(lines) if line.startswith("| exit code |"))
    codes, meanings = (
        [cell.strip() for cell in line.strip("|").split("|")][1:] for line in (lines[row], lines[row + 2])
    )
    assert [int(code) for code in codes] == [0, *sorted(ERRORS_BY_EXIT_CODE), app.INTERRUPTED]
    assert len(meanings) == len(codes)
    assert all(meanings)
