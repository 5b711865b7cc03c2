"""Tokens that may not, namespaces of others, and a Hub that moves while we work.

Each ends with its exit code, one error line, a hint, and nothing half-published. Once the cause is fixed, the next
run goes on.
"""

from __future__ import annotations

from safetensors.numpy import save

from tests.support.sandbox import Sandbox
from tests.support.small_sandbox import (
    SOURCE,
    TARGET,
    WEIGHTS,
    SandboxBefore,
    assert_failed,
    assert_nothing_published,
    assert_planned,
    assert_published,
    assert_refused,
    quantized_again,
    run_during_pull,
    small_model,
    small_weights,
)


def test_a_revoked_token_stops_the_plan_and_a_new_one_goes_on(sandbox: Sandbox) -> None:
    sandbox.hub.seed(SOURCE, small_model())
    token = sandbox.hub.add_token("bot")
    sandbox.hub.revoke_token(token)
    assert_failed(sandbox.call("run", token=token), 8, "refuses the token")
    assert_nothing_published(sandbox)
    assert_planned(sandbox)


def test_a_read_only_token_publishes_nothing_and_a_write_token_goes_on_without_quantizing(
    sandbox_before: SandboxBefore,
) -> None:
    sandbox = sandbox_before("publish")
    made = _times(sandbox)
    result = sandbox.call("run", token=sandbox.hub.token("bot", role="read"))
    assert_failed(result, 7, TARGET, "the token can only read")
    assert "HF_WRITE_TOKEN" in result.stderr
    assert_nothing_published(sandbox)
    assert _times(sandbox) == made
    report = sandbox.jobs[0] / "report.json"
    measured = report.stat().st_mtime_ns
    result = sandbox.call("run")
    assert_published(sandbox, result)
    assert not quantized_again(result)
    assert report.stat().st_mtime_ns == measured


def test_a_namespace_without_membership_is_refused(sandbox_before: SandboxBefore) -> None:
    sandbox = sandbox_before("publish")
    token = sandbox.hub.add_token("newcomer")
    assert_failed(sandbox.call("run", token=token), 7, TARGET, "newcomer does not belong to quantized")
    assert_nothing_published(sandbox)
    sandbox.hub.add_token("newcomer", orgs=["quantized"])
    result = sandbox.call("run", token=token)
    assert_published(sandbox, result)
    assert not quantized_again(result)


def test_content_that_appeared_on_the_target_after_planning_is_not_overwritten(
    sandbox_before: SandboxBefore,
) -> None:
    sandbox = sandbox_before("publish")
    theirs = sandbox.hub.seed(TARGET, {"README.md": "mine", "weights.bin": b"mine"}, private=True)
    result = sandbox.call("publish", "--job", str(sandbox.jobs[0]))
    assert_failed(result, 7, TARGET, "content that awq-bot did not publish")
    assert sandbox.hub.refs(TARGET)["refs/heads/main"] == theirs
    sandbox.hub.store.delete(sandbox.hub.repo(TARGET))
    result = sandbox.call("run")
    assert_published(sandbox, result)
    assert not quantized_again(result)


def _times(sandbox: Sandbox) -> dict[str, int]:
    made = [path for folder in ("layers", "quantized") for path in (sandbox.jobs[0] / folder).rglob("*")]
    assert made
    return {str(path): path.stat().st_mtime_ns for path in made}


def test_the_planned_commit_is_published_although_upstream_changed(sandbox_before: SandboxBefore) -> None:
    sandbox = sandbox_before("pull")
    planned = sandbox.hub.refs(SOURCE)["refs/heads/main"]
    newer = save({name: 2 * tensor for name, tensor in small_weights().items()})
    result = run_during_pull(sandbox, lambda: sandbox.hub.seed(SOURCE, {WEIGHTS: newer}))
    provenance = assert_published(sandbox, result)
    assert provenance["source"]["sha"] == planned
    [job] = sandbox.plan()["jobs"]
    assert job["reason"] == f"upstream changed: {WEIGHTS}"


def test_an_upstream_that_is_deleted_while_it_is_pulled_is_an_upstream_error(
    sandbox_before: SandboxBefore,
) -> None:
    sandbox = sandbox_before("pull")
    upstream = sandbox.hub.repo(SOURCE)
    result = run_during_pull(sandbox, lambda: sandbox.hub.store.delete(upstream))
    assert_failed(result, 3, SOURCE, "answers 404")
    assert_nothing_published(sandbox)
    assert_refused(sandbox, 3, "missing")
    sandbox.hub.seed(SOURCE, small_model())
    assert_planned(sandbox)
