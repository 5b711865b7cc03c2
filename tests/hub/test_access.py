"""What `doctor` says about the endpoint, tokens and identities."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import stamina
from huggingface_hub import HfApi, constants

from bot.hub.access import check_access, check_endpoint
from bot.hub.session import Hub
from bot.localhub import Fault, LocalHub
from bot.records import Check
from tests.support.github_api.id_token import IdTokens
from tests.support.repos import TARGET, all_requests, as_bot, forget_requests
from tests.support.workflow_identity import trust


def looked_at(hub: Hub, *, runner: bool = False, namespaces: tuple[str, ...] = ("quantized",)) -> dict[str, Check]:
    return {check.name: check for check in check_access(hub, namespaces, runner=runner)}


@pytest.mark.parametrize(
    ("read", "write", "runner", "expected"),
    [
        ("bot/read", "bot/write", False, "ok ok ok ok"),
        ("reader/read", "bot/write", False, "ok warning ok ok"),
        ("bot/read", "bot/read", True, "ok ok ok -"),
        ("bot/read", "bot/write", True, "ok ok warning ok"),
        ("bot/write", "bot/write", True, "warning ok ok -"),
        ("", "", True, "warning - ok -"),
        ("", "", False, "warning - failed -"),
    ],
)
def test_tokens_may_do_what_this_machine_needs_and_no_more(
    hub: LocalHub, read: str, write: str, runner: bool, expected: str
) -> None:
    tokens = {"bot/read": hub.token(role="read"), "bot/write": hub.token(), "": None}
    tokens["reader/read"] = hub.token("reader", role="read")
    found = looked_at(Hub(hub.endpoint, tokens[read], tokens[write]), runner=runner)
    assert statuses(found) == expected
    if expected == "ok warning ok ok":
        assert "seem to be missing" in found["read quantized"].fix


def statuses(checks: dict[str, Check]) -> str:
    names = ("read token", "read quantized", "write token", "write to quantized")
    assert checks.keys() <= set(names)
    return " ".join(checks[name].status if name in checks else "-" for name in names)


@pytest.mark.parametrize("stored", ["hf_stored_here\n", "", None], ids=["stored", "empty", "none"])
def test_token_that_hf_auth_stored_is_named_and_not_used(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stored: str | None
) -> None:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    if stored is not None:
        (tmp_path / "token").write_text(stored)
    check = looked_at(Hub(hub.endpoint))["read token"]
    assert check.status == "warning"
    assert ("`hf auth login` is not used" in check.found) == bool(stored)
    assert ("export HF_TOKEN=$(hf auth token)" in check.fix) == bool(stored)
    assert "hf_stored_here" not in check.found + check.fix
    assert all_requests(hub) == ()


def test_command_that_doctor_names_prints_the_stored_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_stored_here")
    hf = Path(sys.executable).with_name("hf")
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run([hf, "auth", "token"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "hf_stored_here\n"


NO_HUB = "{}: an answer is not one of the Hub's API: Expecting value: line 1 column 1 (char 0)"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (Fault(path="/api/models", status=503, times=None), "{}: the Hub answers 503"),
        (Fault(path="/api/models", status=404, times=None), "{} answers 404"),
        (Fault(path="/api/models", status=403, times=None), "{} answers 403"),
        (Fault(path="/api/models", status=200, body="<html>Welcome</html>"), NO_HUB),
    ],
    ids=["busy", "missing", "refused", "another server"],
)
def test_endpoint_that_fails_is_named_after_one_request(hub: LocalHub, answer: Fault, found: str) -> None:
    assert check_endpoint(as_bot(hub)).status == "ok"
    hub.faults.add(answer)
    check = check_endpoint(as_bot(hub))
    assert (check.status, check.found) == ("failed", found.format(hub.endpoint))
    assert check.fix
    assert len(all_requests(hub)) == 2


def test_create_token_is_checked_when_it_is_set(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_CREATE_TOKEN", hub.token())
    assert looked_at(Hub.from_environment())["create token"].status == "ok"
    hub.revoke_token(hub.token())
    check = looked_at(Hub.from_environment())["create token"]
    assert (check.status, "refuses the token" in check.found) == ("failed", True)


def test_identity_is_exchanged_instead_of_a_write_token(hub: LocalHub, api: HfApi, workflow: IdTokens) -> None:
    api.create_repo(TARGET, private=True)
    refused = looked_at(Hub.from_environment())["trusted publisher"]
    assert refused.status == "failed"
    assert f"{TARGET}/settings" in refused.fix
    trust(hub)
    forget_requests(hub)
    found = looked_at(Hub.from_environment())
    assert found["trusted publisher"].status == "ok"
    assert "write token" not in found
    assert workflow.asked == 2
    assert [item.path for item in all_requests(hub) if item.method == "POST"] == ["/oauth/token"]


def test_failed_exchange_is_no_endpoint_failure(workflow: IdTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
    alone = Hub.from_environment()
    assert check_endpoint(alone).status == "ok"
    check = looked_at(alone)["trusted publisher"]
    assert (check.status, "id-token: write" in check.fix) == ("failed", True)
    assert workflow.asked == 0


def test_endpoint_that_cannot_be_reached_is_a_failure(hub: LocalHub) -> None:
    nowhere = Hub(hub.endpoint)
    hub.stop()
    with stamina.set_testing(True, attempts=1):
        check = check_endpoint(nowhere)
    assert (check.status, check.found) == ("failed", f"the Hub at {nowhere.endpoint} refuses the connection")
    assert "awq-bot hub" in check.fix


def test_rights_of_a_fine_grained_token_are_not_guessed(hub: LocalHub) -> None:
    """whoami says neither what it can read nor where it can write; `bot` could do both."""
    orgs = [{"type": "org", "name": "quantized", "roleInOrg": "admin"}]
    answer = {"type": "user", "name": "bot", "orgs": orgs, "auth": {"accessToken": {"role": "fineGrained"}}}
    hub.faults.add(Fault(path="whoami", status=200, body=json.dumps(answer), times=None))
    found = looked_at(as_bot(hub))
    assert statuses(found) == "ok unknown ok unknown"
    assert "settings page" in found["write to quantized"].fix


@pytest.mark.parametrize(
    ("orgs", "sees", "writes"),
    [
        ({"quantized": "admin"}, "ok", "ok"),
        ({"quantized": "write"}, "ok", "ok"),
        ({"quantized": "contributor"}, "ok", "ok"),
        ({"quantized": "read"}, "ok", "failed"),
        ({"elsewhere": "admin"}, "warning", "failed"),
        ({}, "warning", "failed"),
    ],
)
def test_members_write_as_their_role_in_the_organisation_lets_them(
    hub: LocalHub, orgs: dict[str, str], sees: str, writes: str
) -> None:
    token = hub.add_token("member", orgs=orgs)
    found = looked_at(Hub(hub.endpoint, token, token))
    assert (found["read quantized"].status, found["write to quantized"].status) == (sees, writes)
    assert ("to quantized with write access" in found["write to quantized"].fix) == (writes == "failed")
    own = looked_at(Hub(hub.endpoint, token, token), namespaces=("member",))
    assert (own["read member"].status, own["write to member"].status) == ("ok", "ok")
