"""What the plan reads of sources and targets, and in how many requests."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import stamina
from huggingface_hub import HfApi

from bot.errors import EnvironmentProblem
from bot.hub import client, fetch
from bot.hub.session import Hub
from bot.localhub import Fault, LocalHub
from bot.records import Published, TargetState, Upstream, to_json
from tests.support import factories
from tests.support.repos import SOURCE, TARGET, as_bot, forget_requests, source_files


def listed(hub: LocalHub, **entry: Any) -> Upstream:
    return client.upstream(as_bot(hub), [factories.entry(**entry)])[0]


def state(hub: LocalHub) -> Published:
    return client.published(as_bot(hub), [factories.entry()])[0]


# --- sources ------------------------------------------------------------------------------------------------


def test_source_is_read_in_one_request(hub: LocalHub) -> None:
    sha = hub.seed(SOURCE, source_files())
    found = listed(hub)
    assert [(item.method, item.path) for item in hub.requests] == [("GET", f"/api/models/{SOURCE}/revision/main")]
    assert (found.sha, found.problem, found.gated, found.private) == (sha, None, None, False)
    assert (found.license, found.languages, found.tags) == ("apache-2.0", ("en", "de"), ("chat",))
    assert found.pipeline_tag == "text-generation"


def test_hashes_are_sha256_of_large_files_and_git_ids_of_small_ones(hub: LocalHub) -> None:
    hub.seed(SOURCE, source_files(model__safetensors=b"1234", LICENSE="hello\n"))
    weights, license_file = listed(hub).file("model.safetensors"), listed(hub).file("LICENSE")
    assert weights is not None
    assert license_file is not None
    # sha256sum and git hash-object
    assert weights.content_hash == "03ac674216f3e15c761ee1a5e255f067953623c8b388b4459e13f978d7c846f4"
    assert license_file.content_hash == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert (weights.size_bytes, license_file.size_bytes) == (4, 6)


def test_revision_of_the_entry_is_read(hub: LocalHub) -> None:
    hub.seed(SOURCE, source_files())
    sha = hub.seed(SOURCE, {"config.json": "{}"}, revision="refs/pr/1")
    assert listed(hub, revision="refs/pr/1").sha == sha


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"repo_id": "lab/Nothing"}, "missing: no such repo"),
        ({"repo_id": "lab/Secret"}, "missing: no such repo, or private"),
        ({"revision": "v9"}, "missing: no revision 'v9'"),
        ({"repo_id": "lab/Banned"}, "answers 403"),
        ({"repo_id": "lab/Broken"}, "answers 500"),
    ],
)
def test_source_that_cannot_be_read_is_a_problem_of_one_entry(
    hub: LocalHub, entry: dict[str, str], words: str
) -> None:
    hub.seed("lab/Secret", source_files(), private=True)
    hub.seed("lab/Banned", source_files())
    hub.disable("lab/Banned")
    hub.seed(SOURCE, source_files())
    hub.faults.add(Fault(path="lab/Broken", status=500, times=None))
    asked = [factories.entry(**entry), factories.entry()]
    with stamina.set_testing(True, attempts=2):
        bad, good = client.upstream(as_bot(hub), asked)
    assert words in str(bad.problem)
    assert good.problem is None


def test_gating_is_listed_and_protects_the_weights(hub: LocalHub) -> None:
    hub.seed(SOURCE, source_files(), gated="manual")
    found = listed(hub)
    assert (found.gated, found.problem, len(found.files)) == ("manual", None, 8)
    assert "gated" in str(client.details(as_bot(hub), [found])[0].problem)
    hub.grant_access(SOURCE, "bot")
    assert client.details(as_bot(hub), [found])[0].problem is None


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("license: [mit, apache-2.0]", {"license": None}),
        ("license: ' mit '", {"license": "mit"}),
        ("language: 3", {"languages": ()}),
        ("language: en", {"languages": ("en",)}),
        ("language: [en, 3, {a: b}]", {"languages": ("en",)}),
        ("tags: x-ray", {"tags": ("x-ray",)}),
        ("tags: [a, 3, [b]]", {"tags": ("a",)}),
        ("pipeline_tag: [a]", {"pipeline_tag": "text-generation"}),
        ("model-index: 5", {"license": None}),
        ("eval_results: 5", {"license": None}),
        ("license_link: 2020-01-01", {"license_link": None}),
        ("just: [unclosed", {"license": None}),
    ],
)
def test_invalid_metadata_in_a_card_counts_as_not_stated(
    hub: LocalHub, metadata: str, expected: dict[str, object]
) -> None:
    hub.seed(SOURCE, source_files(README__md=f"---\n{metadata}\n---\n"))
    found = listed(hub)
    if "2020" in metadata:  # the Hub gives dates as text
        expected = {"license_link": found.license_link}
    assert found.problem is None
    assert {key: getattr(found, key) for key in expected} == expected


@pytest.mark.parametrize("metadata", ["ignore_metadata_errors: true", "self: 1", "tags: 7"])
def test_metadata_that_the_client_cannot_parse_stops_no_other_entry(hub: LocalHub, metadata: str) -> None:
    hub.seed(SOURCE, source_files(README__md=f"---\n{metadata}\n---\n"))
    hub.seed("lab/Other", source_files())
    bad, good = client.upstream(as_bot(hub), [factories.entry(), factories.entry(repo_id="lab/Other")])
    assert bad.problem is None or "README.md" in bad.problem
    assert good.problem is None


def test_revoked_token_ends_the_plan(hub: LocalHub) -> None:
    caller = as_bot(hub)
    hub.revoke_token(str(caller.read_token))
    with pytest.raises(EnvironmentProblem, match="token"):
        client.upstream(caller, [factories.entry()])


def test_unreachable_hub_ends_the_plan_at_once(hub: LocalHub) -> None:
    nowhere = Hub(hub.endpoint)
    hub.stop()
    asked = [factories.entry(repo_id=f"lab/{number}") for number in range(50)]
    started = time.monotonic()
    with stamina.set_testing(True, attempts=2), pytest.raises(EnvironmentProblem, match="refuses the connection"):
        client.upstream(nowhere, asked)
    assert time.monotonic() - started < 5


def test_two_hundred_entries_are_read_in_parallel(hub: LocalHub) -> None:
    hub.seed(SOURCE, source_files())
    hub.faults.add(Fault(path="/api/models/lab", delay_s=0.02, times=None))
    asked = [factories.entry(target=f"quantized/{number}") for number in range(200)]
    started = time.monotonic()
    found = client.upstream(as_bot(hub), asked)
    duration_s = time.monotonic() - started
    assert [item.problem for item in found] == [None] * 200
    assert len(hub.requests) == 200
    one_by_one_s = sum(item.duration_s for item in hub.requests)
    assert duration_s < one_by_one_s / 2


# --- targets ------------------------------------------------------------------------------------------------


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
    assert not state(hub).complete


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"schema": 2}', b"[" * 900, b" " * 1001], ids=len)
def test_unreadable_provenance_is_a_problem(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(fetch, "MAX_SMALL_FILE_BYTES", 1000)
    hub.seed(TARGET, {"provenance.json": content})
    found = state(hub)
    assert found.state is TargetState.UNREADABLE
    assert "provenance.json cannot be read" in str(found.problem)


def test_target_that_fails_stops_no_other_entry(hub: LocalHub) -> None:
    hub.seed(TARGET, {"a": "1"})
    hub.disable(TARGET)
    hub.faults.add(Fault(path="quantized/Broken", status=503, times=None))
    asked = [factories.entry(target=name) for name in (TARGET, "quantized/Broken", "quantized/New")]
    with stamina.set_testing(True, attempts=2):
        banned, broken, absent = client.published(as_bot(hub), asked)
    assert "403" in str(banned.problem)
    assert "503" in str(broken.problem)
    assert (absent.state, absent.problem) == (TargetState.ABSENT, None)


def test_gated_target_of_another_account_is_a_problem(hub: LocalHub) -> None:
    hub.seed("lab/Theirs", {"provenance.json": "{}"}, gated="auto")
    found = client.published(as_bot(hub), [factories.entry(target="lab/Theirs")])[0]
    assert (found.state, found.problem) == (TargetState.UNREADABLE, "the target's provenance answers 403")


def test_small_change_by_hand_keeps_a_target_ours(hub: LocalHub) -> None:
    hub.seed(TARGET, {"provenance.json": to_json(factories.provenance())})
    hub.seed(TARGET, {"note.md": "by hand"})
    assert state(hub).state is TargetState.OURS
