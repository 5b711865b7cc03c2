"""A first watchlist, models added to it, and old job folders."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from bot.cli import setup
from bot.files import locked
from bot.localhub import LocalHub
from bot.watch import watchlist as watchlists
from bot.watch.schema import SCHEMA_FILE
from tests.cli.conftest import Run
from tests.support import factories
from tests.support.repos import requests, source_files
from tests.support.watch import BUILTIN_TEXT
from tests.support.workspace import WEIGHTS

ROOT = Path(__file__).parents[2]

# --- init ---------------------------------------------------------------------------------------------------


def test_init_writes_a_commented_watchlist_that_check_accepts(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("init", "--publish-to", "acme")
    assert code == 0
    assert "awq-bot add" in out
    text = (tmp_path / "watchlist.yaml").read_text()
    assert yaml.safe_load(text) == {
        "publish_to": "acme",
        "defaults": {"licenses": {"deny": ["other"]}},
        "models": [],
    }
    assert text.count("#") > 5
    assert run("check")[0] == 0
    assert (tmp_path / named_schema(text)).read_bytes() == SCHEMA_FILE.read_bytes()


def named_schema(text: str) -> str:
    """As editors read it from a watchlist's first line."""
    return text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")


def test_init_writes_the_schema_again_after_an_update(run: Run, tmp_path: Path) -> None:
    run("init", "--watchlist", "lists/mine.yaml", "--publish-to", "acme")
    before, schema = (tmp_path / "lists/mine.yaml").read_text(), tmp_path / "lists" / SCHEMA_FILE.name
    schema.write_text("{}")
    code, out, _ = run("init", "--watchlist", "lists/mine.yaml", "--schema")
    assert (code, out) == (0, f"wrote lists/{SCHEMA_FILE.name}\n")
    assert schema.read_bytes() == SCHEMA_FILE.read_bytes()
    assert (tmp_path / "lists/mine.yaml").read_text() == before


@pytest.mark.slow
def test_it_runs_from_its_git_repository_without_torch(tmp_path: Path, hub: LocalHub) -> None:
    """As `uvx --from git+https://… awq-bot` does. Needs the package index."""
    command = [sys.executable, "-m", "uv", "tool", "run", "--from", f"git+file://{ROOT}"]
    environment = os.environ | {
        "UV_TOOL_DIR": str(tmp_path / "tools"),
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": hub.token("reader", role="read"),
    }

    def bot(*words: str) -> str:
        ended = subprocess.run(
            [*command, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    hub.seed("lab/Tiny", source_files(model__safetensors=WEIGHTS))
    bot("awq-bot", "init", "--publish-to", "quantized")
    path = tmp_path / "watchlist.yaml"
    path.write_text(f"publish_to: quantized\n{BUILTIN_TEXT}models:\n  - lab/Tiny\n")
    [planned] = json.loads(bot("awq-bot", "plan", "--json"))["jobs"]
    assert planned["entry"]["repo_id"] == "lab/Tiny"
    found = bot(
        "python", "-c", "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('bot') is None)"
    )
    assert found == "None False\n"


def test_init_without_a_terminal_asks_nothing_and_says_what_to_set(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("init", "--watchlist", "lists/mine.yaml")
    assert code == 0
    assert "set publish_to" in out
    assert yaml.safe_load((tmp_path / "lists" / "mine.yaml").read_text())["publish_to"] == "your-namespace"


def test_init_on_a_terminal_asks_where_to_publish(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "bot", "init"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=theirs, stdout=subprocess.PIPE, text=True, env=environment
    ) as asked:
        os.write(ours, b"acme\n")
        out, _ = asked.communicate(timeout=60)
    assert asked.returncode == 0, out
    assert "publish to [your-namespace]" in out
    assert yaml.safe_load((tmp_path / "watchlist.yaml").read_text())["publish_to"] == "acme"


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_init_never_overwrites(run: Run, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "watchlist.yaml"
    if kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to("nowhere")
    code, _, err = run("init", "--publish-to", "acme")
    assert (code, "already exists" in err) == (2, True)
    assert path.is_symlink() or path.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["a/b", "a b", "https://huggingface.co/a", "-a"])
def test_init_refuses_what_is_no_namespace(run: Run, tmp_path: Path, name: str) -> None:
    code, _, err = run("init", f"--publish-to={name}")
    assert (code, "is not a namespace" in err) == (2, True)
    assert not (tmp_path / "watchlist.yaml").exists()


# --- add ----------------------------------------------------------------------------------------------------

WATCHLIST = f"""\
# Ours.
publish_to: quantized   # the organisation
{BUILTIN_TEXT}
models:
  # The first.
  - lab/first   # small

# The end.
"""


@pytest.fixture
def watchlist(tmp_path: Path) -> Path:
    path = tmp_path / "watchlist.yaml"
    path.write_text(WATCHLIST)
    path.chmod(0o640)
    return path


@pytest.fixture
def models(with_hub: LocalHub) -> LocalHub:
    """lab/small can be quantized; lab/pickle cannot; lab/first is not looked at."""
    with_hub.seed("lab/small", source_files(model__safetensors=WEIGHTS))
    files = source_files(pytorch_model__bin=b"")
    with_hub.seed("lab/pickle", {path: content for path, content in files.items() if path != "model.safetensors"})
    return with_hub


AT_PR = "{repo_id: lab/small, revision: refs/pr/1}"


@pytest.mark.parametrize(
    ("typed", "line"),
    [("https://huggingface.co/lab/small/blob/main/config.json", "lab/small"), ("lab/small@refs/pr/1", AT_PR)],
)
def test_add_shows_the_plan_of_that_model_alone_and_keeps_the_file(
    run: Run, watchlist: Path, models: LocalHub, typed: str, line: str
) -> None:
    models.seed("lab/small", {"config.json": source_files()["config.json"]}, revision="refs/pr/1")
    code, out, err = run("add", typed)
    assert code == 0, err
    assert "quantize" in out
    assert "first release" in out
    assert watchlist.read_text() == WATCHLIST.replace("# small\n", f"# small\n  - {line}\n")
    assert watchlist.stat().st_mode & 0o777 == 0o640
    assert not requests(models, "GET", "lab/first")


def test_add_of_what_is_listed_changes_nothing_and_says_so(run: Run, watchlist: Path) -> None:
    code, out, _ = run("add", "LAB/First@v2")
    assert (code, out) == (0, "watchlist.yaml:7: lab/first at main is listed already; nothing changed\n")
    assert watchlist.read_text() == WATCHLIST


def test_add_dry_run_shows_the_plan_and_writes_nothing(run: Run, watchlist: Path, models: LocalHub) -> None:
    code, out, _ = run("add", "lab/small", "--dry-run")
    assert code == 0
    assert "first release" in out
    assert "would get the line `- lab/small`" in out
    assert watchlist.read_text() == WATCHLIST


def test_a_refusal_leaves_the_file_unchanged_unless_forced(run: Run, watchlist: Path, models: LocalHub) -> None:
    code, out, err = run("add", "lab/pickle")
    assert code == 3
    assert "pickle-only" in out
    assert "--force" in err
    assert watchlist.read_text() == WATCHLIST
    assert run("add", "lab/pickle", "--force")[0] == 0
    assert [entry.repo_id for entry in watchlists.load(watchlist)] == ["lab/first", "lab/pickle"]


def test_a_hub_that_does_not_answer_leaves_the_file_unchanged_unless_forced(
    run: Run, watchlist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("bot.hub.session.ATTEMPTS", 1)
    assert run("add", "lab/small")[0] == 8
    assert watchlist.read_text() == WATCHLIST
    code, _, err = run("add", "lab/small", "--force")
    assert (code, "refuses the connection" in err) == (0, True)
    assert "lab/small" in watchlist.read_text()


@pytest.mark.parametrize(
    ("content", "typed", "word"),
    [
        (WATCHLIST, "other/first", "publishes to quantized/first-awq, and so does line 7"),
        ("publish_to: your-namespace\nmodels: []\n", "lab/small", "only the example"),
        ("models: []\n", "lab/small", "nowhere to publish to"),
        ("modles: []\n", "lab/small", "unknown key 'modles'"),
        (WATCHLIST, "small", "'small' is not a model's repo id"),
        (WATCHLIST, "https://huggingface.co/lab", "is not a model's repo id"),
        (WATCHLIST, "https://huggingface.co/datasets/lab/small", "is not a model's repo id"),
        (WATCHLIST, "https://huggingface.co/spaces/lab/small", "is not a model's repo id"),
    ],
)
def test_a_watchlist_that_would_be_invalid_is_never_written(
    run: Run, watchlist: Path, content: str, typed: str, word: str
) -> None:
    watchlist.write_text(content)
    code, _, err = run("add", typed, "--force")
    assert code == 2
    assert word in err
    assert watchlist.read_text() == content


def test_an_edit_made_meanwhile_is_not_overwritten(
    run: Run, watchlist: Path, models: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edited(*_: object, **__: object) -> int:
        watchlist.write_text("models: []\n")
        return 0

    monkeypatch.setattr(setup, "_show_plan", edited)
    code, _, err = run("add", "lab/small")
    assert (code, "was changed while this command ran" in err) == (2, True)
    assert watchlist.read_text() == "models: []\n"


# --- clean --------------------------------------------------------------------------------------------------


def job_folder(work: Path, name: str, *records: str, days: float = 0.0) -> Path:
    """A job's folder with 1,000 bytes of weights, last changed so many days ago."""
    job = factories.job(job_id=name)
    folder = work / name
    (folder / "source").mkdir(parents=True)
    (folder / "source" / "model.safetensors").write_bytes(b"x" * 1000)
    record = {"job_id": job.job_id, "entry": {"target": job.entry.target}}
    (folder / "job.json").write_text(json.dumps({"inputs": "", "record": record}))
    for item in records:
        (folder / f"{item}.json").write_text("{}")
    then = time.time() - days * 86_400
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then))
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Three jobs, and what is none."""
    work = tmp_path / "work"
    job_folder(work, "published", "card", "publication")
    job_folder(work, "ready", "card", days=10)
    job_folder(work, "unfinished", days=40)
    outside = tmp_path / "outside"
    job_folder(tmp_path, "outside", "publication")
    (work / "link").symlink_to(outside)
    (work / "published" / "link").symlink_to(outside)
    (work / "notes").mkdir()
    (work / "notes" / "publication.json").write_text("{}")
    job_folder(work, "copied", "publication").rename(work / "a-copy")
    return work


def names(work: Path) -> set[str]:
    return {path.name for path in work.iterdir()}


def test_clean_shows_what_is_there_and_deletes_nothing(run: Run, work: Path) -> None:
    assert run("clean", "--work", "nowhere", "--yes")[:2] == (0, "no job folders in nowhere\n")
    before = names(work)
    code, out, _ = run("clean")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert sorted(row[-1] for row in rows[1:-1]) == ["published", "ready", "unfinished"]
    for part in ("40 days", "ready to publish", "in 1 folder would be deleted; --yes deletes them"):
        assert part in out
    assert {row[-1]: row[-2] for row in rows[1:-1]} == {
        "published": "delete",
        "ready": "keep",
        "unfinished": "keep",
    }
    assert names(work) == before


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ((), {"ready", "unfinished"}),
        (("--older-than", "30"), {"published", "ready"}),
        (("--older-than", "5"), {"published"}),
        (("--older-than", "0"), set()),
    ],
)
def test_clean_deletes_published_jobs_or_those_of_an_age(
    run: Run, work: Path, options: tuple[str, ...], left: set[str]
) -> None:
    code, out, _ = run("clean", "--yes", *options)
    assert (code, "deleted" in out) == (0, True)
    assert names(work) == {"link", "notes", "a-copy"} | left
    assert (work.parent / "outside" / "source" / "model.safetensors").exists()


def test_a_job_that_a_process_works_on_is_never_deleted(run: Run, work: Path) -> None:
    with locked(work / "published" / ".lock"):
        code, out, _ = run("clean", "--yes", "--older-than", "0")
        assert code == 0
        assert "in use" in out
        assert (work / "published" / "source" / "model.safetensors").exists()
        assert not (work / "ready").exists()
    with (work / "published" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    run("clean", "--yes")
    assert not (work / "published").exists()
