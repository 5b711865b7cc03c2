"""What a plan asks of the Hub when little is new, and that what it remembers never changes what it decides."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import stamina

from bot.hub import seen
from bot.hub.session import Hub
from bot.jobs import pipeline, watched
from bot.localhub import Fault, Limits, LocalHub
from bot.records import Plan, Recipe, Signer, WatchEntry, to_json
from bot.watch.watchlist import read
from tests.support.repos import all_requests, as_bot, forget_requests, source_files
from tests.support.watched import CHANGES, OF_TAGS, move_tag, publish, untag
from tests.support.watched import watched as model

MODELS = tuple(model(author, name) for author, name in (("lab", "A"), ("lab", "B"), ("lab", "C"), ("solo", "D")))
FIRST, LAST = MODELS[0], MODELS[-1]


class Watch:
    """A Hub, a memory, and a clock."""

    def __init__(self, hub: LocalHub, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hub, self.memory, self._began = hub, memory, datetime.now(UTC)
        self._patch = monkeypatch
        # Headers alone decide: what is planned is not what is tested.
        monkeypatch.setattr(pipeline, "find_spec", lambda name: None)

    def plan(self, entries: Sequence[WatchEntry] = MODELS, *, hours: float = 0, **options: Any) -> Plan:
        """So many hours after the first one."""
        self._patch.setattr(watched, "now", lambda: self._began + timedelta(hours=hours))
        forget_requests(self.hub)
        return pipeline.plan(as_bot(self.hub), entries, memory=self.memory, **options)

    def asked(self) -> list[str]:
        return [f"{item.method} {item.path}" for item in all_requests(self.hub)]

    def without(self, entries: Sequence[WatchEntry] = MODELS) -> Plan:
        return pipeline.plan(as_bot(self.hub), entries)

    def models(self) -> dict[str, Any]:
        return dict(json.loads(self.memory.read_text())["models"])


@pytest.fixture
def watch(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Four models of two authors, published and remembered."""
    publish(hub, MODELS)
    made = Watch(hub, tmp_path / "cache" / "seen.json", monkeypatch)
    assert reasons(made.plan()) == ["up to date"] * 4
    return made


def reasons(plan: Plan) -> list[str]:
    return [*(job.reason for job in plan.jobs), *(skip.reason for skip in plan.skipped)]


# --- how much is asked ----------------------------------------------------------------------------------------


def test_nothing_new_costs_a_list_for_each_author_with_several_models(watch: Watch) -> None:
    again = watch.plan()
    # Of one model of an author, the head is asked for alone.
    assert sorted(watch.asked()) == [
        "GET /api/models",
        "GET /api/models",
        "GET /api/models/solo/D/revision/main",
    ]
    assert to_json(again) == to_json(watch.without())


def test_a_first_plan_reads_each_model_and_no_list_twice(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, MODELS)
    first = Watch(hub, tmp_path / "seen.json", monkeypatch)
    first.plan()
    assert len(first.asked()) == 2 + 3 * len(MODELS)


def test_without_a_file_to_remember_in_no_author_is_listed(watch: Watch) -> None:
    forget_requests(watch.hub)
    watch.without()
    assert len(watch.asked()) == 3 * len(MODELS)


def test_a_readme_only_commit_costs_one_request_once(watch: Watch) -> None:
    CHANGES["README-only commit"](watch.hub, FIRST)
    for requests in (1, 0):
        assert reasons(watch.plan()) == ["up to date"] * 4
        assert len([path for path in watch.asked() if "lab/A" in path]) == requests
        assert not [path for path in watch.asked() if "A-awq" in path]


def test_everything_is_read_again_where_that_is_asked_for(watch: Watch) -> None:
    untag(watch.hub, FIRST.target)
    assert reasons(watch.plan()) == ["up to date"] * 4
    assert "publication was cut short: no tag" in reasons(watch.plan(fresh=True))
    # What it learned is not forgotten.
    assert "publication was cut short: no tag" in reasons(watch.plan())


def test_lines_of_the_watchlist_may_move(watch: Watch) -> None:
    moved = [replace(entry, line=entry.line + 7) for entry in MODELS]
    again = watch.plan(moved)
    assert len(watch.asked()) == 3
    assert to_json(again) == to_json(watch.without(moved))


@pytest.mark.parametrize("fresh", [False, True])
def test_a_plan_of_one_model_forgets_no_other(watch: Watch, fresh: bool) -> None:
    assert reasons(watch.plan([FIRST], only=FIRST.repo_id, fresh=fresh)) == ["up to date"]
    watch.plan()
    assert len(watch.asked()) == 3


def test_an_author_is_listed_once_for_rules_and_heads(watch: Watch, tmp_path: Path) -> None:
    path = tmp_path / "watchlist.yaml"
    text = (
        "publish_to: quantized\ndefaults: {calibration: {sources: [{builtin: prose}]}}\nmodels: [lab/A, lab/B]\n"
    )
    path.write_text(text + "discover: [{author: lab, mode: publish}, {author: Lab, match: X*}]\n")
    asked = read(path)
    watch.hub.seed("lab/E", source_files())
    found = pipeline.with_found(as_bot(watch.hub), asked)
    assert [entry.repo_id for entry in found] == ["lab/A", "lab/B", "lab/E", "lab/C"]
    publish(watch.hub, found)
    for requests in (2 + 3 * len(found), 2):
        plan = watch.plan(asked.entries, rules=asked.rules)
        assert reasons(plan) == ["up to date"] * 4
        assert len(watch.asked()) == requests
        assert watch.asked().count("GET /api/models") == 2
    assert to_json(plan) == to_json(pipeline.plan(as_bot(watch.hub), asked.entries, asked.rules))


# --- what is decided ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [FIRST, LAST], ids=["listed", "asked for alone"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_plan_is_the_same_with_and_without_what_is_remembered(
    watch: Watch, change: str, entry: WatchEntry
) -> None:
    CHANGES[change](watch.hub, entry)
    expected = to_json(watch.without())
    assert to_json(watch.plan()) == expected
    assert to_json(watch.plan(hours=1)) == expected


@pytest.mark.parametrize("change", OF_TAGS)
def test_a_tag_that_moves_alone_is_noticed_within_a_day(watch: Watch, change: str) -> None:
    OF_TAGS[change](watch.hub, FIRST)
    expected = to_json(watch.without())
    watch.plan(hours=12)
    assert to_json(watch.plan(hours=24)) == expected
    assert to_json(watch.plan(hours=24.1)) == expected


@pytest.mark.parametrize(
    "changed",
    [
        {"recipe": Recipe(group_size=64)},
        {"private": True},
        {"requantize": "outdated"},
        {"revision": "v1"},
        {"target": "quantized/B-awq"},
        {"hold": "later"},
        {"trust_remote_code": True},
        {"repo_id": "lab/a"},
    ],
    ids=str,
)
def test_an_entry_that_changes_is_compared_again(watch: Watch, changed: dict[str, Any]) -> None:
    entries = [replace(FIRST, **changed), *MODELS[1:]]
    assert to_json(watch.plan(entries)) == to_json(watch.without(entries))


def test_what_happens_in_any_order_is_decided_as_without(watch: Watch) -> None:
    """A day passes between two plans, so that tags count, too."""
    chance = random.Random(14)
    names = [name for name in [*CHANGES, *OF_TAGS] if name != "source renamed to another author"]
    for step in range(12):
        name, entry = chance.choice(names), chance.choice(MODELS)
        try:
            {**CHANGES, **OF_TAGS}[name](watch.hub, entry)
        except Exception:
            continue  # what was deleted cannot change
        assert to_json(watch.plan(hours=25 * step)) == to_json(watch.without()), name


def test_another_version_of_the_bot_reads_everything_again(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "_code", lambda: "0" * 64)
    watch.plan()
    assert len(watch.asked()) == 2 + 3 * len(MODELS)


def test_two_names_of_one_repo_are_refused_though_both_are_remembered(watch: Watch) -> None:
    watch.hub.rename("lab/B", "lab/B2")
    twice = [*MODELS, model("lab", "B2", line=9)]
    expected = to_json(watch.without(twice))
    assert "the same repo as lab/B2" in expected
    assert [to_json(watch.plan(twice)) for _ in range(2)] == [expected] * 2


# --- whose turn it is -----------------------------------------------------------------------------------------


def test_tags_are_looked_at_once_a_day_a_part_at_a_time(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [model("lab", f"M{number}") for number in range(12)]
    publish(hub, entries)
    watch = Watch(hub, tmp_path / "seen.json", monkeypatch)
    watch.plan(entries)
    looked: list[str] = []
    for hours in range(2, 25, 2):
        assert reasons(watch.plan(entries, hours=hours)) == ["up to date"] * 12
        now = [path for path in watch.asked() if path.endswith("/refs")]
        assert len(watch.asked()) == 2 + len(now)
        assert len(now) <= 2
        looked += now
    assert len(set(looked)) == len(looked) == 12


def test_what_was_not_planned_for_days_is_looked_at_at_once(watch: Watch) -> None:
    move_tag(watch.hub, FIRST.target)
    changed = watch.plan(hours=80)
    assert reasons(changed).count("up to date") == 3
    assert len([path for path in watch.asked() if path.endswith("/refs")]) >= 4


def test_everything_is_read_again_within_four_weeks(watch: Watch) -> None:
    models = watch.models()
    damaged = {key: fields | {"files": "0" * 64} for key, fields in models.items()}
    whole = json.loads(watch.memory.read_text())
    watch.memory.write_text(json.dumps(whole | {"models": damaged}))
    for day in range(1, 30):
        watch.plan(hours=24 * day)
    assert {fields["files"] for fields in watch.models().values()} == {models[key]["files"] for key in models}


def test_a_forged_file_can_make_a_model_pass_as_up_to_date_and_nothing_else(watch: Watch) -> None:
    CHANGES["new weights"](watch.hub, FIRST)
    CHANGES["target changed by hand"](watch.hub, MODELS[1])
    whole = json.loads(watch.memory.read_text())
    for entry in MODELS[:2]:
        forged = whole["models"][seen.key_of(entry)]
        forged["source"] = watch.hub.refs(entry.repo_id)["refs/heads/main"]
        forged["target"] = watch.hub.refs(entry.target)["refs/heads/main"]
    watch.memory.write_text(json.dumps(whole))
    assert reasons(watch.plan()) == ["up to date"] * 4
    # The tag is on no commit that was made by hand.
    assert reasons(watch.plan(hours=24)).count("up to date") == 3
    expected = to_json(watch.without())
    assert to_json(watch.plan(hours=24 * 29)) == expected
    assert to_json(watch.plan(fresh=True)) == expected


# --- what may be kept -----------------------------------------------------------------------------------------


def test_nothing_of_what_is_private_is_written(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = (*MODELS, model("quantized", "Mine", private=True), model("quantized", "Open"))
    hub.seed("quantized/Mine", source_files(), private=True)
    hub.seed("quantized/Open", source_files(), private=True)
    publish(hub, entries)
    for repo_id in ("quantized/Mine-awq", "quantized/Open-awq", "quantized/C-awq"):
        hub.repo(repo_id).update_settings(private=True)
    watch = Watch(hub, tmp_path / "seen.json", monkeypatch)
    expected = to_json(watch.without(entries))
    for _ in range(2):
        assert to_json(watch.plan(entries)) == expected
        text = watch.memory.read_text()
        assert "Mine" not in text
        assert "Open" not in text
        assert "C-awq" not in text
        assert len(watch.models()) == 3
        secrets = [hub.token("bot"), hub.token("bot", role="read")]
        assert not any(secret in text for secret in secrets)


def test_what_becomes_private_is_forgotten(watch: Watch) -> None:
    watch.hub.repo(FIRST.target).update_settings(private=True)
    watch.plan()
    assert len(watch.models()) == 3


def test_what_must_be_signed_is_always_read(watch: Watch) -> None:
    pytest.importorskip("model_signing")
    signed = [replace(entry, signed_by=Signer(kind="key", value="0" * 64)) for entry in MODELS]
    expected = to_json(watch.without(signed))
    assert "it is not signed" in expected
    for _ in range(2):
        assert to_json(watch.plan(signed)) == expected
        assert len([path for path in watch.asked() if path.endswith("/refs")]) == 4


# --- lists that cannot be read --------------------------------------------------------------------------------


def pages(tmp_path: Path, count: int) -> tuple[LocalHub, list[WatchEntry]]:
    return LocalHub(tmp_path / "pages", limits=Limits(list_page=2)), [
        model("lab", f"M{number}", owner=f"mine{number}") for number in range(count)
    ]


def test_models_whose_lists_cannot_be_read_are_asked_about_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    local, entries = pages(tmp_path, 8)
    with local as hub:
        publish(hub, entries)
        watch = Watch(hub, tmp_path / "seen.json", monkeypatch)
        watch.plan(entries)
        watch.plan(entries)
        assert watch.asked() == ["GET /api/models"] * (4 + 8)
        expected = to_json(watch.without(entries))
        hub.faults.add(Fault(path="/api/models$", status=503, times=None))
        with stamina.set_testing(True, attempts=1), caplog.at_level("WARNING", "awq_bot"):
            assert to_json(watch.plan(entries)) == expected
        assert "lab: its list of repos ends on page 1 (the Hub answers 503)" in caplog.text
        assert len([path for path in watch.asked() if "/api/models/lab/" in path]) == 8
        # What could not be looked up in lists is not forgotten.
        hub.faults.clear()
        watch.plan(entries)
        assert not [path for path in watch.asked() if "/api/models/lab/" in path]


def test_an_author_with_more_pages_than_models_is_not_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, entries = pages(tmp_path, 3)
    with local as hub:
        publish(hub, entries)
        for number in range(10):
            hub.seed(f"lab/Other{number}", {"README.md": ""})
        watch = Watch(hub, tmp_path / "seen.json", monkeypatch)
        watch.plan(entries)
        first = watch.asked().count("GET /api/models")
        assert first == 2 + 3  # two pages of lab, and one of each owner
        watch.plan(entries)
        assert watch.asked().count("GET /api/models") == 3
        assert len([path for path in watch.asked() if "/api/models/lab/" in path]) == 3


def test_a_hub_that_shows_no_settings_in_lists_is_asked_repo_by_repo(watch: Watch) -> None:
    body = json.dumps([{"id": entry.repo_id, "sha": "0" * 40} for entry in MODELS])
    watch.hub.faults.add(Fault(path="/api/models$", status=200, body=body, times=None))
    assert reasons(watch.plan()) == ["up to date"] * 4
    assert len(watch.asked()) == 2 + 3 * len(MODELS)


def test_a_token_that_is_refused_is_an_error_as_before(watch: Watch) -> None:
    unknown = Hub(watch.hub.endpoint, "hf_" + "x" * 34)
    with pytest.raises(Exception, match="refuses the token"):
        pipeline.plan(unknown, MODELS, memory=watch.memory)
