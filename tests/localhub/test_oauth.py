"""Trusted publishing: which workflows get a token, and what it allows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from bot.localhub import Limits, LocalHub
from tests.support.commits import push, refused
from tests.support.github_api.id_token import CLAIMS, ISSUER, LIFETIME_S, public_key, sign
from tests.support.github_api.server import REPOSITORY

TARGET = "quantized/Tiny-awq"
PUBLISHER = {"repository": REPOSITORY, "branch": "main", "workflow": "watch.yml"}


@pytest.fixture
def trusting(hub: LocalHub, api: HfApi) -> LocalHub:
    """A Hub that knows the issuer, with one private repo that trusts one workflow."""
    hub.trust_issuer(ISSUER, public_key())
    api.create_repo(TARGET, private=True)
    hub.trust_publisher(TARGET, issuer=ISSUER, claims=PUBLISHER)
    return hub


def exchange(hub: LocalHub, id_token: str, resource: str = TARGET, **changed: Any) -> httpx2.Response:
    body = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token_type": "urn:ietf:params:oauth:token-type:id_token",
        "subject_token": id_token,
        "resource": resource,
    }
    with httpx2.Client() as client:
        return client.post(f"{hub.endpoint}/oauth/token", json=body | changed)


def workflow(hub: LocalHub, resource: str = TARGET) -> HfApi:
    answer = exchange(hub, sign(hub.endpoint), resource)
    assert answer.status_code == 200, answer.text
    return HfApi(endpoint=hub.endpoint, token=answer.json()["access_token"])


# --- which workflows get one --------------------------------------------------------------------------------


def test_the_response_is_as_documented(trusting: LocalHub) -> None:
    answer = exchange(trusting, sign(trusting.endpoint)).json()
    assert answer.pop("access_token").startswith("hf_jwt_")
    assert answer == {
        "token_type": "bearer",
        "expires_in": 3600,
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
    }


@pytest.mark.parametrize(
    "claims",
    [
        {"repository": "someone/fork"},
        {"ref": "refs/heads/main-backup"},
        {"ref": "refs/tags/main"},
        {"workflow_ref": f"{REPOSITORY}/.github/workflows/other.yml@refs/heads/main"},
        {"workflow_ref": ""},
        {"iss": "https://gitlab.com"},
        {"exp": 1},
    ],
)
def test_claims_that_differ_are_refused_without_saying_which(trusting: LocalHub, claims: dict[str, Any]) -> None:
    answer = exchange(trusting, sign(trusting.endpoint, CLAIMS | claims))
    description = "No trusted publisher of the resource matches the id token"
    assert answer.json() == {"error": "invalid_grant", "error_description": description}
    assert answer.status_code == 400


def test_claims_may_be_named_as_github_names_them(trusting: LocalHub) -> None:
    trusting.trust.remove_publishers(TARGET)
    trusting.trust_publisher(TARGET, issuer=ISSUER, claims={"ref": "refs/heads/main", "environment": "publish"})
    assert exchange(trusting, sign(trusting.endpoint)).status_code == 200
    assert exchange(trusting, sign(trusting.endpoint, CLAIMS | {"environment": "other"})).status_code == 400


def test_tokens_of_another_key_audience_or_time_are_refused(trusting: LocalHub) -> None:
    unsigned = f"{sign(trusting.endpoint).rpartition('.')[0]}."
    other_key, other_audience = sign(trusting.endpoint, key="another"), sign("https://github.com/someone")
    expired = sign(trusting.endpoint, age_s=LIFETIME_S + 1)
    for id_token in (other_key, other_audience, expired, unsigned, "no.jwt"):
        answer = exchange(trusting, id_token)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")


def test_resources_without_a_publisher_are_refused_alike(trusting: LocalHub, api: HfApi) -> None:
    api.create_repo("quantized/Other-awq")
    for resource in [
        "quantized/Other-awq",
        "quantized/missing",
        "datasets/quantized/x",
        "bot",
        "missing",
        "a/b/c",
    ]:
        assert exchange(trusting, sign(trusting.endpoint), resource).json()["error"] == "invalid_grant"
    trusting.trust.remove_publishers(TARGET)
    assert exchange(trusting, sign(trusting.endpoint)).json()["error"] == "invalid_grant"


def test_malformed_requests_get_distinct_errors(trusting: LocalHub) -> None:
    good = sign(trusting.endpoint)
    assert exchange(trusting, good, grant_type="password").json()["error"] == "unsupported_grant_type"
    for changed in ({"subject_token": ""}, {"resource": ""}, {"subject_token_type": "jwt"}):
        assert exchange(trusting, good, **changed).json()["error"] == "invalid_request"
    with httpx2.Client() as client:
        assert client.post(f"{trusting.endpoint}/oauth/token", content=b"{").status_code == 400


# --- what it allows -----------------------------------------------------------------------------------------


def test_it_writes_to_its_repo_and_nowhere_else(trusting: LocalHub, api: HfApi) -> None:
    api.create_repo("quantized/Other-awq")
    client = workflow(trusting)
    commit = push(client, TARGET, {"a.safetensors": b"1" * 1000, "b.txt": b"2"})
    client.create_tag(TARGET, tag="v1", revision=commit.oid)
    assert trusting.history(TARGET)[0].author == "[OIDC]"
    assert set(trusting.files(TARGET, "v1")) == {".gitattributes", "a.safetensors", "b.txt"}
    assert refused(lambda: push(client, "quantized/Other-awq", {"b.txt": b"2"})) == 403
    assert refused(lambda: client.create_tag("quantized/Other-awq", tag="v1")) == 403


def test_it_changes_content_alone(trusting: LocalHub) -> None:
    client = workflow(trusting)
    for call in (
        lambda: client.create_repo("quantized/New-awq"),
        lambda: client.update_repo_settings(TARGET, private=False),
        lambda: client.update_repo_settings(TARGET, gated="auto"),
        lambda: client.move_repo(TARGET, "quantized/Moved-awq"),
        lambda: client.delete_repo(TARGET),
        client.whoami,
    ):
        assert refused(call) == 403
    assert trusting.repo(TARGET).settings().private


def test_it_reads_its_own_private_repo_and_what_is_public(trusting: LocalHub, api: HfApi, tmp_path: Path) -> None:
    api.create_repo("quantized/Secret", private=True)
    trusting.seed("lab/Open", {"a": "1"})
    trusting.seed(TARGET, {"a": "1"}, gated="auto")
    client = workflow(trusting)
    assert client.model_info("lab/Open").id == "lab/Open"
    assert Path(client.hf_hub_download(TARGET, "a", cache_dir=tmp_path)).read_text() == "1"
    with pytest.raises(RepositoryNotFoundError):
        client.model_info("quantized/Secret")


def test_a_users_token_reads_gated_repos_and_nothing_private(trusting: LocalHub, tmp_path: Path) -> None:
    trusting.trust_publisher("bot", issuer=ISSUER, claims={"repository": REPOSITORY})
    for name in ("Granted", "Other"):
        trusting.seed(f"lab/{name}", {"a": "1"}, gated="auto")
    trusting.grant_access("lab/Granted", "bot")
    client = workflow(trusting, "bot")
    assert Path(client.hf_hub_download("lab/Granted", "a", cache_dir=tmp_path)).read_text() == "1"
    with pytest.raises(GatedRepoError):
        client.hf_hub_download("lab/Other", "a", cache_dir=tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        client.model_info(TARGET)
    trusting.seed("quantized/Public", {"a": "1"})
    assert refused(lambda: client.create_tag("quantized/Public", tag="x")) == 403


def test_it_expires(tmp_path: Path) -> None:
    with LocalHub(tmp_path / "hub", limits=Limits(exchanged_token_s=0.2)) as short:
        short.trust_issuer(ISSUER, public_key())
        short.seed(TARGET, {"a": "1"})
        short.trust_publisher(TARGET, issuer=ISSUER, claims=PUBLISHER)
        client = workflow(short)
        assert client.model_info(TARGET).id == TARGET
        time.sleep(0.25)
        assert refused(lambda: client.model_info(TARGET)) == 401


def test_neither_token_is_in_the_log(trusting: LocalHub) -> None:
    id_token = sign(trusting.endpoint)
    token = exchange(trusting, id_token).json()["access_token"]
    log = (trusting.root / "requests.jsonl").read_text()
    assert "/oauth/token" in log
    assert token not in log
    assert id_token not in log
