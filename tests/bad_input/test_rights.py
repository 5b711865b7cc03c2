"""Tokens that may not, namespaces of others, and a Hub that moves while we work.

Each ends with its exit code, one line of what happened where, what to do next, and nothing half-published; and
where a person can mend it, the next run goes on.
"""

from __future__ import annotations

from safetensors.numpy import save

from tests.support.mixed_sandbox import AT_PULL, Before, meanwhile
from tests.support.outcomes import (
    assert_nothing_published,
    assert_published,
    failed,
    mended,
    quantized_again,
    refused,
)
from tests.support.sandbox import House
from tests.support.small_model import SOURCE, TARGET, WEIGHTS, small_model, small_weights


def test_a_revoked_token_stops_the_plan_and_a_new_one_goes_on(house: House) -> None:
    house.hub.seed(SOURCE, small_model())
    token = house.hub.add_token("bot")
    house.hub.revoke_token(token)
    failed(house.call("run", token=token), 8, "refuses the token")
    assert_nothing_published(house)
    mended(house)


def test_a_read_only_token_publishes_nothing_and_a_write_token_goes_on_without_quantizing(before: Before) -> None:
    house = before("publish")
    made = _times(house)
    result = house.call("run", token=house.hub.token("bot", role="read"))
    failed(result, 7, TARGET, "the token may only read")
    assert "HF_WRITE_TOKEN" in result.stderr
    assert_nothing_published(house)
    assert _times(house) == made
    report = house.jobs[0] / "report.json"
    measured = report.stat().st_mtime_ns
    result = house.call("run")
    assert_published(house, result)
    assert not quantized_again(result)
    assert report.stat().st_mtime_ns == measured


def test_somebody_elses_namespace_is_refused_until_they_let_us_in(before: Before) -> None:
    house = before("publish")
    token = house.hub.add_token("newcomer")
    failed(house.call("run", token=token), 7, TARGET, "newcomer does not belong to quantized")
    assert_nothing_published(house)
    house.hub.add_token("newcomer", orgs=["quantized"])
    result = house.call("run", token=token)
    assert_published(house, result)
    assert not quantized_again(result)


def test_somebody_elses_content_that_came_while_we_worked_is_not_overwritten(before: Before) -> None:
    house = before("publish")
    theirs = house.hub.seed(TARGET, {"README.md": "mine", "weights.bin": b"mine"}, private=True)
    failed(house.call("publish", "--job", str(house.jobs[0])), 7, TARGET, "content that is not ours")
    assert house.hub.refs(TARGET)["refs/heads/main"] == theirs
    house.hub.store.delete(house.hub.repo(TARGET))
    result = house.call("run")
    assert_published(house, result)
    assert not quantized_again(result)


def _times(house: House) -> dict[str, int]:
    made = [path for folder in ("layers", "quantized") for path in (house.jobs[0] / folder).rglob("*")]
    assert made
    return {str(path): path.stat().st_mtime_ns for path in made}


def test_what_the_plan_saw_is_what_is_published_though_upstream_went_on(before: Before) -> None:
    house = before("pull")
    planned = house.hub.refs(SOURCE)["refs/heads/main"]
    newer = save({name: 2 * tensor for name, tensor in small_weights().items()})
    result = meanwhile(house, AT_PULL, lambda: house.hub.seed(SOURCE, {WEIGHTS: newer}), "run")
    provenance = assert_published(house, result)
    assert provenance["source"]["sha"] == planned
    [job] = house.plan()["jobs"]
    assert job["reason"] == f"upstream changed: {WEIGHTS}"


def test_an_upstream_that_goes_away_while_it_is_pulled_is_an_upstream_error(before: Before) -> None:
    house = before("pull")
    upstream = house.hub.repo(SOURCE)
    result = meanwhile(house, AT_PULL, lambda: house.hub.store.delete(upstream), "run")
    failed(result, 3, SOURCE, "answers 404")
    assert_nothing_published(house)
    refused(house, 3, "missing")
    house.hub.seed(SOURCE, small_model())
    mended(house)
