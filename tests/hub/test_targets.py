"""What the plan reads of targets, and targets that are created before their first release."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import stamina
from huggingface_hub import HfApi

from bot.errors import EnvironmentProblem, PublishError
from bot.hub import fetch
from bot.hub.session import Hub
from bot.hub.settings import PreparedTarget
from bot.hub.targets import read_targets
from bot.jobs import pipeline
from bot.localhub import Fault, LocalHub
from bot.records import Published, TargetState, to_json
from tests.support import factories
from tests.support.release import Release
from tests.support.repos import SOURCE, TARGET, all_requests, as_bot, forget_requests, source_files, writes


def state(hub: LocalHub) -> Published:
    return read_targets(as_bot(hub), [factories.entry()])[0]


def test_unchanged_target_takes_one_api_call_and_one_resolver_call(hub: LocalHub, api: HfApi) -> None:
    made = factories.provenance()
    head = hub.seed(TARGET, {"provenance.json": to_json(made)})
    api.create_tag(TARGET, tag=made.tag, revision=head)
    forget_requests(hub)
    found = state(hub)
    assert found.complete
    assert (found.state, found.head, found.provenance) == (TargetState.OURS, head, made)
    assert [item.path for item in hub.requests] == [
        f"/api/models/{TARGET}/refs",
        f"/{TARGET}/resolve/{head}/provenance.json",
    ]


def test_absent_empty_and_foreign_targets_are_distinguished(hub: LocalHub, api: HfApi) -> None:
    assert state(hub).state is TargetState.ABSENT
    api.create_repo(TARGET, private=True)
    assert state(hub).state is TargetState.EMPTY
    hub.seed(TARGET, {"model.safetensors": b"1"})
    assert state(hub).state is TargetState.FOREIGN


def test_squashed_history_does_not_make_a_repo_empty(hub: LocalHub) -> None:
    """`super_squash_history` leaves one commit with everything in it."""
    sha = hub.seed(TARGET, {"model.safetensors": b"1"})
    path = hub.repo(TARGET).folder / "commits" / f"{sha}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parent": None}))
    assert len(hub.history(TARGET)) == 1
    assert state(hub).state is TargetState.FOREIGN


def test_provenance_without_its_tag_is_not_complete(hub: LocalHub, api: HfApi) -> None:
    made = factories.provenance()
    first = hub.seed(TARGET, {"provenance.json": to_json(made)})
    assert (state(hub).state, state(hub).complete) == (TargetState.OURS, False)
    hub.seed(TARGET, {"by-hand.txt": "x"})
    api.create_tag(TARGET, tag=made.tag, revision=first)
    assert (state(hub).state, state(hub).complete) == (TargetState.OURS, False)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"schema": 2}', b"[" * 900, b" " * 1001], ids=len)
def test_broken_provenance_is_a_problem(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(fetch, "MAX_SMALL_FILE_BYTES", 1000)
    hub.seed(TARGET, {"provenance.json": content})
    found = state(hub)
    assert found.state is TargetState.UNREADABLE
    assert "provenance.json cannot be read" in str(found.problem)


def test_target_that_fails_stops_no_other_entry(hub: LocalHub) -> None:
    hub.seed(TARGET, {"a": "1"})
    hub.disable(TARGET)
    hub.faults.add(Fault(path="quantized/Broken", status=503, times=None))
    hub.seed("lab/Gated", {"provenance.json": "{}"}, gated="auto")
    asked = [factories.entry(target=name) for name in (TARGET, "quantized/Broken", "lab/Gated", "quantized/New")]
    with stamina.set_testing(True, attempts=2):
        banned, broken, gated, absent = read_targets(as_bot(hub), asked)
    assert ("403" in str(banned.problem), "503" in str(broken.problem)) == (True, True)
    assert (gated.state, gated.problem) == (TargetState.UNREADABLE, "the target's provenance answers 403")
    assert (absent.state, absent.problem) == (TargetState.ABSENT, None)


# --- creating them ------------------------------------------------------------------------------------------

ENTRY = factories.entry()


def create(hub: LocalHub, **entry: str) -> PreparedTarget:
    return pipeline.create_targets(as_bot(hub), [factories.entry(**entry)])[0]


@pytest.fixture(autouse=True)
def source(hub: LocalHub) -> None:
    hub.seed(SOURCE, source_files())


def test_missing_target_is_created_private_and_once(hub: LocalHub, tmp_path: Path) -> None:
    created = create(hub)
    assert (created.done, created.private) == (("created, private",), True)
    assert created.url == f"{hub.endpoint}/{TARGET}"
    assert f"{hub.endpoint}/{TARGET}/settings" in created.note
    assert read_targets(as_bot(hub), [ENTRY])[0].state is TargetState.EMPTY
    forget_requests(hub)
    assert create(hub).done == ()
    assert writes(hub) == []
    release = Release.of(hub, tmp_path)
    assert (release.publish().new, release.private) == (True, False)


def test_refused_target_does_not_stop_the_others(hub: LocalHub) -> None:
    refused, created = pipeline.create_targets(as_bot(hub), [factories.entry(target="lab/Tiny-awq"), ENTRY])
    assert (refused.done, refused.private, refused.exit_code) == ((), None, 7)
    assert "not permitted to create the repo" in refused.problem
    assert "HF_CREATE_TOKEN needs write access to 'lab'" in refused.hint
    assert created.done == ("created, private",)


def test_create_token_is_the_one_that_is_used(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", hub.token("reader", role="read"))
    monkeypatch.setenv("HF_CREATE_TOKEN", hub.add_token("opener", orgs=["quantized"]))
    assert pipeline.create_targets(Hub.from_environment(), [ENTRY])[0].private
    assert {item.user for item in all_requests(hub) if item.path.endswith("/repos/create")} == {"opener"}


def test_without_a_token_nothing_is_requested(hub: LocalHub) -> None:
    forget_requests(hub)
    with pytest.raises(PublishError, match="no token that can create") as caught:
        pipeline.create_targets(Hub(hub.endpoint), [ENTRY])
    assert "HF_CREATE_TOKEN" in caught.value.hint
    assert all_requests(hub) == ()


def test_revoked_token_stops_everything(hub: LocalHub) -> None:
    caller = as_bot(hub)
    hub.revoke_token(str(caller.write_token))
    with pytest.raises(EnvironmentProblem, match="refuses the token"):
        pipeline.create_targets(caller, [ENTRY])


def test_foreign_repo_is_not_changed(hub: LocalHub) -> None:
    hub.seed(TARGET, {"model.safetensors": b"theirs"}, private=True)
    forget_requests(hub)
    assert "content that awq-bot did not publish" in create(hub).problem
    assert writes(hub) == []


def test_target_of_another_source_or_of_a_deleted_one_is_not_made_public(hub: LocalHub, tmp_path: Path) -> None:
    release = Release.of(hub, tmp_path, private=True)
    release.publish()
    hub.seed("lab/Other", source_files())
    assert "made from lab/Tiny, not from lab/Other" in create(hub, repo_id="lab/Other").problem
    hub.store.delete(hub.repo(SOURCE))
    target = create(hub)
    assert (target.done, target.private) == ((), True)
    assert "unchanged: missing" in target.note
    assert release.private


@pytest.mark.parametrize(
    ("entry", "code", "words"),
    [
        ({"repo_id": "lab/Tinny"}, 7, "lab/Tinny: .*no target was created"),
        ({"hold": "a fix is coming"}, 0, "on hold: a fix is coming"),
    ],
    ids=["missing source", "hold"],
)
def test_no_target_is_created_for_a_missing_source_or_an_entry_on_hold(
    hub: LocalHub, entry: dict[str, str], code: int, words: str
) -> None:
    target = create(hub, **entry)
    assert (target.done, target.exit_code) == ((), code)
    assert re.search(words, target.problem + target.note)
    assert not hub.store.exists(TARGET)


def test_repo_that_the_token_cannot_read_is_named(hub: LocalHub, api: HfApi) -> None:
    headers = {"X-Error-Code": "RepoNotFound"}
    hub.faults.add(Fault(path=f"/models/{TARGET}/refs", status=404, headers=headers, times=None))
    assert "it exists, but the token cannot read it" in create(hub).problem
