"""`awq-bot status`: what the site, the table and the JSON say of a Hub, and which folder is replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bot.github.issues import mark
from bot.localhub import Fault, LocalHub
from bot.page.site import TOP_LEVEL, site_files
from bot.records import Attempts
from tests.cli.conftest import Run
from tests.support.github_api.server import ACTIONS
from tests.support.release import Release
from tests.support.repos import SOURCE, TARGET, source_files, writes
from tests.support.status import many
from tests.support.watch import BUILTIN_TEXT
from tests.support.workspace import WEIGHTS, Workspace

WATCHLIST = f"publish_to: quantized\n{BUILTIN_TEXT}models:\n  - {SOURCE}\n"
PAGE = "models/quantized--Tiny-awq.html"


@pytest.fixture
def watchlist(tmp_path: Path) -> Path:
    path = tmp_path / "watchlist.yaml"
    path.write_text(WATCHLIST)
    return path


@pytest.fixture
def published(with_hub: LocalHub, watchlist: Path, tmp_path: Path) -> Release:
    """Of a model that can be planned."""
    with_hub.seed(SOURCE, source_files(model__safetensors=WEIGHTS))
    release = Release.of(with_hub, tmp_path / "jobs")
    release.publish()
    return release


def only_model(text: str) -> dict[str, Any]:
    [found] = json.loads(text)["models"]
    return dict(found)


def test_a_published_model_is_on_the_page_in_the_feed_and_in_the_json(
    run: Run, published: Release, tmp_path: Path
) -> None:
    before = writes(published.hub)
    code, out, err = run("status", "--out", "site", "--url", "https://someone.github.io/bot")
    assert (code, out) == (0, "site/index.html: 1 planned\n"), err
    site, tag = tmp_path / "site", published.job.tag
    found = only_model((site / "status.json").read_text())
    assert (found["source"], found["target"]) == (SOURCE, TARGET)
    assert [item["tag"] for item in found["releases"]] == [tag]
    assert found["releases"][0]["kl_mean"] == 0.0123
    index, page, feed = ((site / name).read_text() for name in ("index.html", PAGE, "feed.xml"))
    assert f'href="{published.hub.endpoint}/{TARGET}"' in index
    assert tag in page
    assert f"{published.hub.endpoint}/{TARGET}/tree/{tag}</id>" in feed
    assert "https://someone.github.io/bot/feed.xml" in feed
    assert "sdk: static" in (site / "README.md").read_text()
    assert writes(published.hub) == before


def test_the_table_and_the_json_say_the_same(run: Run, published: Release) -> None:
    code, out, err = run("status")
    assert code == 0
    assert SOURCE in out
    assert f"{TARGET} {published.job.tag}" in out
    assert "KL 0.0123, top-1 93.5 %" in out
    assert "no GITHUB_TOKEN" in err
    code, out, _ = run("status", "--json")
    assert (code, only_model(out)["releases"][0]["tag"]) == (0, published.job.tag)


def test_a_private_model_is_on_the_page_only_if_that_is_asked_for(
    run: Run, published: Release, tmp_path: Path
) -> None:
    published.hub.repo(SOURCE).update_settings(private=True)
    published.hub.add_token("bot", orgs={"lab": "write", "quantized": "write"})
    code, out, _ = run("status", "--out", "site")
    assert (code, out) == (0, "site/index.html: no models; 1 not shown\n")
    files = [path for path in (tmp_path / "site").rglob("*") if path.is_file()]
    assert [path for path in files if "Tiny" in path.read_text() + path.name] == []
    assert "1 model is not shown" in (tmp_path / "site" / "index.html").read_text()
    code, _, _ = run("status", "--out", "site", "--private")
    assert SOURCE in (tmp_path / "site" / "index.html").read_text()
    assert "Do not publish it." in (tmp_path / "site" / "index.html").read_text()
    code, out, _ = run("status")
    assert SOURCE in out


def test_failed_attempts_are_read_from_the_issues(workspace: Workspace) -> None:
    workspace.seed("Tiny")
    workspace.plan("--dry-run")
    workspace.plan()
    [job] = workspace.planned()
    failed = Attempts(target=TARGET, content=job.attempt_digest, count=2, next_try="2026-11-30T02:50:00Z")
    issue = workspace.api.open_issue(ACTIONS, "awq-bot: it failed", f"Words.\n\n{mark(failed)}\n")
    ended = workspace.runner.step_here(
        "status", "--json", "--private", **workspace.api.environment(workspace.api.token())
    )
    assert ended.code == 0, ended.err
    found = only_model(ended.out)
    assert (found["state"], found["reason"]) == ("waiting", "failed twice")
    assert (found["next_attempt"], found["issue"]) == ("2026-11-30T02:50:00Z", issue.number)
    public = workspace.runner.step_here("status", "--json", **workspace.api.environment(workspace.api.token()))
    assert only_model(public.out)["issue_url"] == ""  # nothing says that the repository is public


def test_github_that_fails_is_a_note_and_the_page_is_made(workspace: Workspace) -> None:
    workspace.seed("Tiny")
    workspace.api.faults.add(Fault(path="/issues", status=403, times=None))
    ended = workspace.runner.step_here(
        "status", "--out", "site", **workspace.api.environment(workspace.api.token())
    )
    assert ended.code == 0, ended.err
    text = (workspace.root / "site" / "index.html").read_text()
    assert "Failed attempts are not known: GitHub answers 403" in text


def test_what_a_rule_finds_is_proposed_and_has_no_page_yet(workspace: Workspace) -> None:
    workspace.hub.seed("lab/New", source_files(model__safetensors=WEIGHTS))
    workspace.discover("{author: lab}")
    ended = workspace.runner.step_here("status", "--json")
    found = only_model(ended.out)
    assert (found["source"], found["state"], found["target"]) == ("lab/New", "proposed", "quantized/New-awq")
    assert workspace.runner.step_here("status", "--out", "site").code == 0
    assert list((workspace.root / "site").glob("models/*")) == []


def test_an_account_that_cannot_be_listed_is_not_shown_and_said(
    run: Run, published: Release, tmp_path: Path
) -> None:
    published.hub.faults.add(Fault(path="/api/models$", status=403, times=None))
    code, out, err = run("status", "--out", "site")
    assert (code, out) == (0, "site/index.html: no models; 1 not shown\n")
    assert "Models of 2 accounts could not be listed, and may be missing here: the Hub answers 403." in err
    assert "Models of 2 accounts could not be listed" in (tmp_path / "site" / "index.html").read_text()


def test_an_empty_watchlist_makes_a_page_that_says_what_to_do(
    run: Run, with_hub: LocalHub, watchlist: Path, tmp_path: Path
) -> None:
    watchlist.write_text("publish_to: quantized\nmodels: []\n")
    code, out, _ = run("status", "--out", "site")
    assert (code, out) == (0, "site/index.html: no models\n")
    assert "No model is watched yet" in (tmp_path / "site" / "index.html").read_text()
    code, out, _ = run("status")
    assert "awq-bot add" in out


def test_a_hub_that_is_down_leaves_the_last_page(
    run: Run, published: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("status", "--out", "site")[0] == 0
    before = (tmp_path / "site" / "status.json").read_bytes()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("bot.hub.session.ATTEMPTS", 1)
    code, _, err = run("status", "--out", "site")
    assert code == 8
    assert "refuses the connection" in err
    assert (tmp_path / "site" / "status.json").read_bytes() == before


# --- the folder -----------------------------------------------------------------------------------------------


def test_a_site_is_replaced_whole(run: Run, published: Release, tmp_path: Path) -> None:
    assert run("status", "--out", "site")[0] == 0
    (tmp_path / "site" / "models" / "quantized--Gone-awq.html").write_text("of an earlier watchlist")
    assert run("status", "--out", "site/")[0] == 0
    assert [path.name for path in (tmp_path / "site" / "models").iterdir()] == ["quantized--Tiny-awq.html"]
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize(
    ("there", "named"),
    [
        (("notes.txt",), "notes.txt"),
        (("index.html",), "index.html"),  # of another site
        ((".git/config", "status.json"), ".git"),
        (("models/model.safetensors",), "model.safetensors"),
    ],
)
def test_a_folder_with_other_things_is_left_alone(
    run: Run, with_hub: LocalHub, watchlist: Path, tmp_path: Path, there: tuple[str, ...], named: str
) -> None:
    for path in there:
        (tmp_path / "site" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / path).write_text("{}")
    code, _, err = run("status", "--out", "site")
    assert code == 2
    assert f"--out site: {named} is not of a site" in err
    assert all((tmp_path / "site" / path).read_text() == "{}" for path in there)
    assert with_hub.requests == ()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_is_left_alone(
    run: Run, with_hub: LocalHub, watchlist: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "file":
        (tmp_path / "site").write_text("mine")
    else:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "site").symlink_to("elsewhere")
    code, _, err = run("status", "--out", "site")
    assert code in (2, 8)
    assert "site" in err


@pytest.mark.parametrize("url", ["javascript:alert(1)", "someone.github.io", 'https://a/"x', "https://a/?q"])
def test_an_address_that_is_none_is_refused(run: Run, watchlist: Path, url: str) -> None:
    code, _, err = run("status", "--out", "site", "--url", url)
    assert code == 2
    assert "is not the address of a site" in err


def test_what_a_folder_of_ours_holds_is_what_is_written() -> None:
    assert {path.partition("/")[0] for path in site_files(many(3))} == TOP_LEVEL
