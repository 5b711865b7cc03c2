"""The command line as scripts and people meet it: what it prints where, and how it exits."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from bot.cli import app, console
from bot.cli.manual import with_commands
from bot.errors import ERRORS_BY_EXIT_CODE
from bot.localhub import Fault, LocalHub
from tests.cli.test_doctor import only_nvidia_smi
from tests.support.repos import source_files
from tests.support.workspace import WEIGHTS, Workspace

Run = Callable[..., tuple[int, str, str]]

ROOT = Path(__file__).parents[2]

WATCHLIST = "publish_to: quantized\nmodels:\n  - lab/small\n"
CONFIG = b'{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}'


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Calls the command line in this process; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    # They asked for the terminal's width when they were made, wherever that was.
    monkeypatch.setattr(console.out, "width", 200)
    monkeypatch.setattr(console.err, "width", 200)
    monkeypatch.setattr("signal.signal", lambda *args: None)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["awq-bot", *words])
        with pytest.raises(SystemExit) as ended:
            app.main()
        printed = capsys.readouterr()
        code = ended.value.code
        return code if isinstance(code, int) else 0, printed.out, printed.err

    return call


@pytest.fixture
def with_hub(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", hub.token())
    return hub


def test_help_names_every_verb_and_the_variables(run: Run) -> None:
    code, out, _ = run()
    assert code == 0
    for verb in ("check", "plan", "run", "pull", "quantize", "evaluate", "card", "publish", "verify", "doctor"):
        assert f" {verb} " in out
    assert "HF_WRITE_TOKEN" in out


def test_every_verbs_help_teaches_with_an_example_or_says_its_stage(run: Run) -> None:
    for verb in ("check", "plan", "run", "quantize", "evaluate", "create-target", "verify", "doctor", "hub"):
        code, out, _ = run(verb, "--help")
        assert code == 0
        assert "Example:" in out, verb


def test_an_unknown_verb_is_a_configuration_error_with_the_near_one(run: Run) -> None:
    code, _, err = run("plann")
    assert code == 2
    assert "plan" in err
    assert "hint:" in err


def test_check_counts_the_models(run: Run, tmp_path: Path) -> None:
    (tmp_path / "watchlist.yaml").write_text(WATCHLIST)
    code, out, _ = run("check")
    assert code == 0
    assert "1 model, no mistakes" in out
    assert "lab/small → quantized/small-awq" in out


def test_check_names_every_mistake_with_its_line_and_the_fix(run: Run, tmp_path: Path) -> None:
    (tmp_path / "watchlist.yaml").write_text(WATCHLIST + "  - repo_id: a/b\n    gatee: {}\n  - repo_id: c\n")
    code, _, err = run("check")
    assert code == 2
    assert "watchlist.yaml:5: unknown key 'gatee'  (Did you mean 'gate'?)" in err
    assert "watchlist.yaml:6: repo_id: c is not valid" in err


def test_a_missing_watchlist_says_what_to_do(run: Run) -> None:
    code, _, err = run("check", "--watchlist", "nowhere.yaml")
    assert code == 2
    assert "nowhere.yaml" in err
    assert "--watchlist" in err


def test_plan_prints_records_for_programs_and_reasons_for_people(
    run: Run, tmp_path: Path, with_hub: LocalHub
) -> None:
    (tmp_path / "watchlist.yaml").write_text(WATCHLIST)
    code, out, _ = run("plan", "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["jobs"] == []
    assert plan["skipped"][0]["reason"].startswith("missing")
    code, out, _ = run("plan")
    assert code == 0
    assert "refused" in out
    assert json.loads(run("plan", "--matrix")[1]) == {"include": []}


def test_run_exits_with_the_code_of_what_it_refused(run: Run, tmp_path: Path, with_hub: LocalHub) -> None:
    (tmp_path / "watchlist.yaml").write_text(WATCHLIST)
    code, out, err = run("run")
    assert code == 3
    assert "nothing to do" in out
    assert "missing" in err


def test_a_fault_of_the_bot_stops_no_other_model(
    run: Run, tmp_path: Path, with_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("small", "other"):
        with_hub.seed(f"lab/{name}", source_files(model__safetensors=WEIGHTS))
    (tmp_path / "watchlist.yaml").write_text(WATCHLIST + "  - lab/other\n")

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


def test_run_only_names_a_model_that_is_not_on_the_list(run: Run, tmp_path: Path, with_hub: LocalHub) -> None:
    (tmp_path / "watchlist.yaml").write_text(WATCHLIST)
    code, _, err = run("run", "--only", "lab/other")
    assert code == 2
    assert "lab/other" in err


def test_a_hub_that_is_not_there_is_an_environment_problem(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "watchlist.yaml").write_text(WATCHLIST)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("bot.hub.session.ATTEMPTS", 1)
    code, _, err = run("plan")
    assert code == 8
    assert "HF_ENDPOINT" in err


def test_a_stage_without_its_job_says_which_verb_comes_first(run: Run, tmp_path: Path) -> None:
    code, _, err = run("card", "--job", str(tmp_path / "nothing"))
    assert code == 2
    assert "awq-bot run" in err


def test_quantize_without_folders_asks_for_them(run: Run) -> None:
    code, _, err = run("quantize")
    assert code == 2
    assert "--source" in err


def test_quantize_names_the_searches_that_there_are(run: Run) -> None:
    code, _, err = run("quantize", "--source", "model", "--out", "made", "--search", "guess")
    assert code == 2
    assert "--search guess" in err
    assert "gram or awq" in err


def test_create_target_takes_sources_and_targets_and_prints_what_it_did(
    run: Run, tmp_path: Path, with_hub: LocalHub
) -> None:
    (tmp_path / "watchlist.yaml").write_text(WATCHLIST + "  - lab/other\n")
    for name in ("lab/small", "lab/other"):
        with_hub.seed(name, source_files())
    code, out, _ = run("create-target", "lab/small")
    assert code == 0
    assert "quantized/small-awq" in out
    assert "us alone" in out
    assert not with_hub.store.exists("quantized/other-awq")
    code, out, _ = run("create-target", "quantized/other-awq", "--json")
    assert [item["done"] for item in json.loads(out)] == [["created, private"]]
    assert "nothing" in run("create-target")[1]


def test_create_target_of_a_model_that_is_not_watched_is_refused(
    run: Run, tmp_path: Path, with_hub: LocalHub
) -> None:
    (tmp_path / "watchlist.yaml").write_text(WATCHLIST)
    code, _, err = run("create-target", "lab/unknown")
    assert code == 2
    assert "lab/unknown is not on" in err


def test_create_target_exits_with_the_code_of_what_failed(
    run: Run, tmp_path: Path, with_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "watchlist.yaml").write_text(WATCHLIST)
    with_hub.seed("lab/small", source_files())
    monkeypatch.setenv("HF_TOKEN", with_hub.token(role="read"))
    code, out, _ = run("create-target")
    assert code == 7
    assert "may not create the repo" in out
    assert "HF_CREATE_TOKEN" in out


def test_verify_of_a_repo_that_is_not_there_is_an_upstream_error(run: Run, with_hub: LocalHub) -> None:
    code, _, err = run("verify", "quantized/none-awq")
    assert code == 3
    assert "quantized/none-awq" in err


def test_verify_refuses_what_the_bot_did_not_publish(run: Run, with_hub: LocalHub) -> None:
    with_hub.seed("quantized/foreign-awq", {"README.md": "hello"})
    assert run("verify", "quantized/foreign-awq")[0] == 7


def test_doctor_finds_a_token_that_may_only_read(
    run: Run, tmp_path: Path, with_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "watchlist.yaml").write_text(WATCHLIST)
    monkeypatch.setenv("HF_TOKEN", with_hub.token(role="read"))
    code, out, _ = run("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert code == 8
    assert checks["endpoint"]["status"] == "ok"
    assert checks["write to quantized"]["status"] == "failed"
    assert "role write" in checks["write to quantized"]["fix"]
    assert checks["versions"]["status"] == "ok", checks["versions"]


@pytest.mark.parametrize(("gpu", "code"), [("NVIDIA L4, 570.86.15, 23034", 0), (None, 8)], ids=["L4", "no GPU"])
def test_doctor_exits_with_8_on_a_runner_without_a_gpu_alone(
    run: Run, tmp_path: Path, with_hub: LocalHub, monkeypatch: pytest.MonkeyPatch, gpu: str | None, code: int
) -> None:
    (tmp_path / "watchlist.yaml").write_text(WATCHLIST)
    only_nvidia_smi(tmp_path / "tools", monkeypatch, gpu)
    ended, out, _ = run("doctor", "--json")
    assert (ended, {check["status"] for check in json.loads(out)} <= {"ok", "warning"}) == (0, True), out
    assert run("doctor", "--runner")[0] == code


@pytest.mark.parametrize(("name", "word"), [("nowhere/bot.log", "No such file"), (".", "Is a directory")])
def test_a_log_file_that_cannot_be_written_is_a_mistake_of_the_command_line(
    run: Run, name: str, word: str
) -> None:
    code, _, err = run("--log-file", name, "check")
    assert code == 2
    assert f"--log-file {name}: {word}" in err
    assert "hint:" in err


def test_a_file_that_fails_where_nobody_expected_it_is_told_with_its_name(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run("demo", "--root", "file/demo")
    assert code == 8
    assert "file/demo: Not a directory" in err
    assert "hint:" in err
    assert "Traceback" not in err
    assert "Traceback" in run("--verbose", "demo", "--root", "file/demo")[2]


@pytest.mark.parametrize(
    "words",
    [
        ("quantize", "--source", "model", "--out", "made"),
        ("evaluate", "--source", "model", "--quantized", "made"),
        ("demo",),
    ],
)
def test_a_verb_that_needs_torch_says_so_where_there_is_none(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    without("torch", monkeypatch)
    code, _, err = run(*words)
    assert code == 8
    assert "torch is not installed" in err
    assert "[quantize]" in err


def test_run_looks_for_torch_before_it_downloads(
    run: Run, place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.seed("small")
    monkeypatch.setenv("HF_ENDPOINT", place.hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", place.hub.token())
    without("torch", monkeypatch)
    code, _, err = run("run", "--watchlist", str(place.root / "watchlist.yaml"))
    assert code == 8
    assert "torch is not installed" in err
    assert not (place.root / "work").exists()


@pytest.mark.parametrize("words", [(), ("--verbose",), ("--log-file", "bot.log")])
def test_a_busy_hub_is_told_once_on_stderr(
    run: Run, tmp_path: Path, with_hub: LocalHub, words: tuple[str, ...]
) -> None:
    (tmp_path / "watchlist.yaml").write_text(WATCHLIST)
    with_hub.faults.add(Fault(path="lab/small", status=503))
    code, out, err = run(*words, "plan")
    assert code == 0
    assert err.count("was answered with 503; retry 1 of 5 in") == 1
    assert "503" not in out


def without(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "find_spec", lambda name: None if name == module else find_spec(name))


@pytest.mark.parametrize("verb", ["quantize", "evaluate", "refresh"])
def test_a_job_that_is_not_there_leaves_no_folder(run: Run, tmp_path: Path, verb: str) -> None:
    code, _, err = run(verb, "--job", "nope")
    assert code == 2
    assert "nope: no job.json" in err
    assert not (tmp_path / "nope").exists()


def test_what_the_hub_prints_is_enough_to_put_a_model_in_with_the_stock_client(tmp_path: Path) -> None:
    model = tmp_path / "my-model"
    model.mkdir()
    (model / "config.json").write_bytes(CONFIG)
    (model / "model.safetensors").write_bytes(b"weights")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-m", "bot", "hub", "--root", "hub", "--port", "0"]
    serving = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    with serving as hub:
        assert hub.stdout is not None
        printed = "".join(iter(hub.stdout.readline, "    - bot/my-model\n"))
        lines = [line.strip() for line in printed.splitlines()]
        exports = dict(line.removeprefix("export ").split("=") for line in lines if line.startswith("export "))
        (upload,) = (line for line in lines if line.startswith("hf upload "))
        client = Path(sys.executable).parent / "hf"
        subprocess.run(
            [client, *upload.split()[1:]], cwd=tmp_path, env=environment | exports, check=True, capture_output=True
        )
        second = subprocess.run([*command], cwd=tmp_path, capture_output=True, text=True, check=False)
        hub.terminate()
    assert (second.returncode, second.stderr.count("another process serves this folder")) == (8, 1)
    assert LocalHub(tmp_path / "hub").files("bot/my-model")["config.json"] == CONFIG


def test_no_colours_when_nobody_looks(tmp_path: Path) -> None:
    (tmp_path / "watchlist.yaml").write_text("nonsense: 1\n")
    command = [sys.executable, "-m", "bot", "check", "--watchlist", str(tmp_path / "watchlist.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "\x1b[" not in done.stdout + done.stderr


def test_the_readme_installs_every_extra_before_it_types_a_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    steps = (ROOT / "README.md").read_text().partition("## Use it for real")[2]
    installed, extras = steps.partition("$ pip install -c constraints.txt '.[")[::2]
    assert "$ awq-bot" not in installed
    assert set(extras.partition("]")[0].split(",")) == set(project["optional-dependencies"])


def test_hints_install_from_a_checkout_and_name_extras_that_there_are() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    source = "".join(path.read_text() for path in (ROOT / "bot").rglob("*.py"))
    assert "awq-bot[" not in source
    assert {"quantize", "actions"} <= set(re.findall(r"constraints\.txt '\.\[(\w+)\]", source)) <= set(extras)
    assert console.EXTRAS.keys() <= set(extras)


def test_every_exit_code_of_the_readme_has_an_error() -> None:
    assert sorted(ERRORS_BY_EXIT_CODE) == [2, 3, 4, 5, 6, 7, 8]


def test_every_exit_code_of_the_readme_is_one_of_ours_and_the_other_way_round() -> None:
    lines = (Path(__file__).parents[2] / "README.md").read_text().splitlines()
    row = next(number for number, line in enumerate(lines) if line.startswith("| exit code |"))
    codes, meanings = (
        [cell.strip() for cell in line.strip("|").split("|")][1:] for line in (lines[row], lines[row + 2])
    )
    assert [int(code) for code in codes] == [0, *sorted(ERRORS_BY_EXIT_CODE), app.INTERRUPTED]
    assert len(meanings) == len(codes)
    assert all(meanings)


def test_the_readmes_commands_are_those_of_the_command_line() -> None:
    readme = (ROOT / "README.md").read_text()
    assert with_commands(readme) == readme, "run `make readme`"
