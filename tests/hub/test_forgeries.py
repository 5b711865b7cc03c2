"""A provenance.json that says what awq-bot never wrote: refused wherever it is read, and nothing asked for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot.errors import PublishError
from bot.hub.session import Hub
from bot.hub.targets import read_target
from bot.hub.verify import verify
from bot.jobs import pipeline
from bot.localhub import LocalHub
from bot.records import Check, TargetState, no_progress, to_json
from tests.support import factories
from tests.support.release import Release
from tests.support.repos import SOURCE, TARGET, all_requests, as_bot, forget_requests, writes

Change = Callable[[dict[str, Any]], object]


def _put(*path: str | int, value: Any) -> Change:
    def change(made: dict[str, Any]) -> None:
        inside: Any = made
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = value

    return change


def _add(*path: str, file: dict[str, Any]) -> Change:
    def change(made: dict[str, Any]) -> None:
        inside: Any = made
        for key in path:
            inside = inside[key]
        inside.append(file)

    return change


HASH = "ab" * 32
RUN = {
    "repository": "a/bot",
    "run_id": 7,
    "attempt": 1,
    "workflow_ref": "a/bot/.github/workflows/watch.yml@refs/heads/main",
    "sha": "0" * 40,
    "url": "https://github.com/a/bot/actions/runs/7/attempts/1",
}


def _run(**changed: Any) -> Change:
    return _put("built_by", value=RUN | changed)


EVIL = "../../../../api/whoami-v2"
HOSTILE: dict[str, tuple[Change, str]] = {
    "source that is no repo": (_put("source", "repo_id", value="a b//.."), "'a b//..' is no repo id"),
    "source above the Hub": (_put("source", "repo_id", value="../.."), "is no repo id"),
    "source without an owner": (_put("source", "repo_id", value="Tiny"), "is no repo id"),
    "source at a branch": (_put("source", "sha", value="refs/heads/main"), "is no commit"),
    "tag of another source": (_put("tag", value="upstream-00000000-00000000"), "does not follow from its source"),
    "tag that is a path": (_put("tag", value="../../refs/heads/main"), "does not follow from its source"),
    "request elsewhere": (_put("files", 0, "path", value=EVIL), "is no safe path"),
    "request elsewhere on Windows": (_put("files", 0, "path", value="..\\..\\x"), "is no safe path"),
    "absolute path": (_put("files", 0, "path", value="/etc/passwd"), "is no safe path"),
    "escape sequence": (_put("files", 0, "path", value="a\x1b[2Jb"), "is no safe path"),
    "source file elsewhere": (
        _add("source", "source_files", file={"path": EVIL, "size_bytes": 1, "content_hash": HASH}),
        "source_files: '../../../../api/whoami-v2' is no safe path",
    ),
    "small file elsewhere": (
        _add("source", "refresh_files", file={"path": "a/../../b", "size_bytes": 1, "content_hash": HASH}),
        "refresh_files: 'a/../../b' is no safe path",
    ),
    "file listed twice": (
        _add("files", file={"path": "config.json", "size_bytes": 1, "sha256": HASH}),
        "lists config.json twice",
    ),
    "itself as a file": (
        _add("files", file={"path": "provenance.json", "size_bytes": 1, "sha256": HASH}),
        "files lists provenance.json",
    ),
    "hash that is none": (_put("files", 0, "sha256", value="00"), "has no sha256"),
    "hash with a line break": (_put("files", 0, "sha256", value=f"{HASH}\n"), "has no sha256"),
    "hash of the source that is none": (
        _put("source", "source_files", 0, "content_hash", value="x" * 64),
        "has no hash of the Hub",
    ),
    "negative size": (_put("files", 0, "size_bytes", value=-1), "has a negative size"),
    "negative size of the source": (
        _put("source", "source_files", 0, "size_bytes", value=-1),
        "has a negative size",
    ),
    "digest that is none": (_put("recipe_digest", value="`x`"), "recipe_digest is no sha256"),
    "hash that is Markdown": (_put("calibration", "sha256", value="`[x](y)"), "calibration.sha256 is no sha256"),
    "division by zero": (_put("report", "perplexity_source", value=0.0), "is not positive"),
    "no number": (_put("report", "kl_mean", value=float("nan")), "a figure is not finite"),
    "picture elsewhere": (_put("report", "pictures", value=["https://x/y.png"]), "is no picture"),
    "too many files": (
        _put("files", value=[{"path": f"f{n}", "size_bytes": 0, "sha256": HASH} for n in range(10_001)]),
        "lists more than 10,000 files",
    ),
    "run of another repository": (
        _run(repository="a/b"),
        "built_by.workflow_ref is no workflow of its repository",
    ),
    "run that is a path": (_run(repository="../.."), "built_by.repository is none"),
    "run that is Markdown": (_run(repository="a/b](x)"), "built_by.repository is none"),
    "run that leads elsewhere": (
        _run(url="https://evil.example/x?https://github.com/a/bot/actions/runs/7/attempts/1"),
        "built_by.url does not lead to the run",
    ),
    "run with a script": (_run(url="javascript:alert(1)"), "built_by.url does not lead to the run"),
    "run with a line break": (_run(url=f"{RUN['url']}\n"), "built_by.url does not lead to the run"),
    "run before the first": (_run(run_id=0), "built_by.run_id or attempt is no count"),
    "attempt before the first": (_run(attempt=-1), "built_by.run_id or attempt is no count"),
    "run of no workflow": (
        _run(workflow_ref="a/bot/.github/workflows/../../x.yml@refs/heads/main"),
        "built_by.workflow_ref is no workflow",
    ),
    "run with an escape sequence": (
        _run(workflow_ref="a/bot/.github/workflows/x.yml@refs/heads/\x1b[2J"),
        "built_by.workflow_ref is no workflow",
    ),
    "run at a branch": (_run(sha="main"), "built_by.sha is no commit"),
    "publisher's run elsewhere": (
        _put("published_by", value=RUN | {"url": "https://github.com/"}),
        "published_by.url does not lead to the run",
    ),
    "run that is no object": (_put("built_by", value="run 7"), "cannot be read"),
    "no object": (_put("source", value=[]), "cannot be read"),
}


@pytest.fixture
def published(release: Release) -> Release:
    release.publish()
    return release


def forge(release: Release, change: Change) -> str:
    """As somebody with write access does it: commit another provenance, and move the tag along."""
    hub, tag = release.hub, f"refs/tags/{release.job.tag}"
    made = json.loads(hub.files(TARGET)["provenance.json"])
    change(made)
    head = hub.seed(TARGET, {"provenance.json": json.dumps(made)})
    hub.repo(TARGET).delete_ref(tag)
    hub.repo(TARGET).create_ref(tag, head)
    return head


def checked(hub: LocalHub, revision: str | None = None) -> dict[str, Check]:
    outsider = Hub(hub.endpoint, hub.token("reader", role="read"))
    return {check.name: check for check in verify(outsider, TARGET, revision=revision, progress=no_progress)}


def failed(hub: LocalHub, revision: str | None = None) -> dict[str, str]:
    return {name: check.found for name, check in checked(hub, revision).items() if check.status == "failed"}


def test_run_as_github_names_it_is_read(hub: LocalHub, published: Release) -> None:
    forge(published, _run())
    assert checked(hub)["built by"].status == "unknown"
    assert failed(hub) == {}


@pytest.mark.forgery
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_provenance_is_refused_by_verify_plan_and_publish(
    hub: LocalHub, published: Release, name: str
) -> None:
    change, expected = HOSTILE[name]
    head = forge(published, change)
    forget_requests(hub)
    for revision in (None, published.job.tag, head):
        with pytest.raises(PublishError, match=r"provenance\.json cannot be ") as caught:
            checked(hub, revision)
        assert expected in caught.value.message
        assert "Do not use" in caught.value.hint
    state = read_target(as_bot(hub), published.job.entry)
    assert (state.state, state.provenance) == (TargetState.UNREADABLE, None)
    assert expected in str(state.problem)
    [skip] = pipeline.plan(as_bot(hub), [published.job.entry]).skipped
    assert (skip.exit_code, skip.reason) == (PublishError.exit_code, state.problem)
    assert expected in published.fails(TARGET).message
    assert writes(hub) == []
    asked = {item.path.split("?")[0] for item in all_requests(hub)}
    assert not [path for path in asked if "whoami" in path or "/.." in path or "passwd" in path]


@pytest.mark.forgery
def test_tag_that_was_moved_to_another_release_is_refused_by_its_name(
    hub: LocalHub, published: Release, tmp_path: Path
) -> None:
    """The other release is complete, so only the name that was asked for tells."""
    newer = published.next(tmp_path, {"config.json": b'{"new": 1}', "model.safetensors": b"new" * 5000})
    newer.publish()
    old, head = published.job.tag, hub.history(TARGET)[0].sha
    hub.repo(TARGET).delete_ref(f"refs/tags/{old}")
    hub.repo(TARGET).create_ref(f"refs/tags/{old}", head)
    found = failed(hub, old)
    assert found.keys() == {"tag", "log"}
    assert found["tag"] == f"{old} is on {head[:8]}, which is the release {newer.job.tag}"
    for revision in (None, "main", head, newer.job.tag):
        assert failed(hub, revision).keys() == {"log"}


@pytest.mark.forgery
def test_tag_that_somebody_else_made_is_not_taken_for_the_release(hub: LocalHub, published: Release) -> None:
    hub.repo(TARGET).create_ref("refs/tags/stable", hub.history(TARGET)[0].sha)
    assert failed(hub, "stable").keys() == {"tag"}


@pytest.mark.forgery
@pytest.mark.parametrize("everywhere", [False, True], ids=["provenance alone", "card and provenance"])
def test_provenance_of_another_source_is_refused(hub: LocalHub, published: Release, everywhere: bool) -> None:
    other = "lab/Other"
    sha = hub.seed(other, {"config.json": "{}"})
    tag = f"upstream-{sha[:8]}-00000000"

    def change(made: dict[str, Any]) -> None:
        made["tag"] = tag
        made["source"] |= {"repo_id": other, "sha": sha, "source_files": [], "refresh_files": []}

    if everywhere:
        hub.seed(TARGET, {"README.md": f"---\nbase_model: {other}\n---\n# Tiny\n"})
    head = forge(published, change)
    hub.repo(TARGET).create_ref(f"refs/tags/{tag}", head)
    name = f"source {other}@{sha[:8]}"
    if everywhere:
        assert failed(hub).keys() == {"README.md"}
    else:
        assert failed(hub)[name] == f"the card says that it was made from {SOURCE}"
    [skip] = pipeline.plan(as_bot(hub), [published.job.entry]).skipped
    assert skip.exit_code == PublishError.exit_code
    assert skip.reason == f"{TARGET} was made from {other}, not from {SOURCE}"


def test_release_without_its_tag_is_said_to_be_one(hub: LocalHub, published: Release) -> None:
    """What a refused request for the tag leaves behind; the next run completes it."""
    hub.repo(TARGET).delete_ref(f"refs/tags/{published.job.tag}")
    for revision in (None, hub.history(TARGET)[0].sha):
        check = checked(hub, revision)["tag"]
        assert check.status == "failed"
        assert "publishing was interrupted before its last step, which sets the tag" in check.found
        assert "awq-bot run" in check.fix
    published.finish()
    assert failed(hub) == {}


@pytest.mark.forgery
def test_release_under_a_tag_that_can_be_computed_is_not_taken_for_ours(hub: LocalHub, release: Release) -> None:
    """A forger who is first: the right tag, and other digests."""
    made = factories.provenance(release.job.entry, release.job.upstream, recipe_digest="0" * 64)
    hub.seed(TARGET, {"provenance.json": to_json(made)})
    release.fails("another run has published to it since the plan was made")
