"""Who may see, read and write what, which workflows get a token, and the errors that a refusal becomes."""

from __future__ import annotations

import stat
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from bot.localhub import HubError, Limits, LocalHub
from bot.localhub.store import Content
from tests.support.commits import push, refused
from tests.support.github_api.id_token import CLAIMS, ISSUER, LIFETIME_S, public_key, sign
from tests.support.github_api.server import REPOSITORY
from tests.support.repos import TARGET
from tests.support.workflow_identity import trust

GATED = "upstream/gated"
FILES: dict[str, Content] = {"config.json": "{}", "model.safetensors": b"\0" * 20}


def test_tokens_are_kept_in_a_private_file(hub: LocalHub) -> None:
    path = hub.root / "tokens.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert hub.token() in path.read_text()


def test_writing_needs_role_and_namespace(hub: LocalHub, api: HfApi, reader: HfApi, anonymous: HfApi) -> None:
    api.create_repo("quantized/x")
    hub.seed("upstream/public", FILES)
    read_token = HfApi(endpoint=hub.endpoint, token=hub.token("bot", role="read"))
    for client, repo_id in ((reader, "quantized/x"), (read_token, "quantized/x"), (api, "upstream/public")):
        for change in (
            partial(push, client, repo_id, {"a": b"1"}),
            partial(client.create_tag, repo_id, tag="t"),
            partial(client.delete_repo, repo_id),
        ):
            assert refused(change) == 403
    guest = HfApi(endpoint=hub.endpoint, token=hub.add_token("guest", orgs={"quantized": "read"}))
    for client, repo_id in ((api, "upstream/mine"), (guest, "quantized/y")):
        assert refused(partial(client.create_repo, repo_id)) == 403
    assert guest.create_repo("own").repo_id == "guest/own"
    with pytest.raises(RepositoryNotFoundError) as missing:
        anonymous.create_tag("quantized/x", tag="t")
    assert missing.value.response.status_code == 401
    assert refused(lambda: anonymous.create_repo("quantized/y")) == 401
    assert len(hub.history("quantized/x")) == 1


def test_private_repo_does_not_exist_for_others(
    hub: LocalHub, api: HfApi, reader: HfApi, anonymous: HfApi, tmp_path: Path
) -> None:
    name = "quantized/secret"
    hub.seed(name, FILES, private=True)
    for client, code in ((reader, 404), (anonymous, 401)):
        with pytest.raises(RepositoryNotFoundError) as caught:
            client.model_info(name)
        assert caught.value.response.status_code == code
        with pytest.raises(RepositoryNotFoundError):
            client.hf_hub_download(name, "config.json", cache_dir=tmp_path)
    member = HfApi(endpoint=hub.endpoint, token=hub.add_token("colleague", role="read", orgs=["quantized"]))
    assert member.model_info(name).private is True
    assert Path(member.hf_hub_download(name, "config.json", cache_dir=tmp_path)).read_text() == "{}"
    api.update_repo_settings(name, private=False)
    assert anonymous.model_info(name).private is False
    api.update_repo_settings(name, visibility="private")
    assert not anonymous.repo_exists(name)


def test_gated_repo_keeps_its_files(hub: LocalHub, reader: HfApi, anonymous: HfApi, tmp_path: Path) -> None:
    hub.seed(GATED, FILES, gated="manual")
    for client, code in ((reader, 403), (anonymous, 401)):
        info = client.model_info(GATED, files_metadata=True)
        assert info.gated == "manual"
        assert "model.safetensors" in {sibling.rfilename for sibling in info.siblings or ()}
        assert len(list(client.list_repo_tree(GATED))) == 3
        for name in FILES:
            with pytest.raises(GatedRepoError) as caught:
                client.hf_hub_download(GATED, name, cache_dir=tmp_path / "cache")
            assert caught.value.response.status_code == code
        with pytest.raises(GatedRepoError):
            client.auth_check(GATED)

    hub.grant_access(GATED, "reader")
    reader.auth_check(GATED)
    path = reader.hf_hub_download(GATED, "model.safetensors", cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == FILES["model.safetensors"]


def test_gating_is_set_by_its_owner(hub: LocalHub, api: HfApi, reader: HfApi, anonymous: HfApi) -> None:
    api.create_repo("quantized/x")
    api.update_repo_settings("quantized/x", gated="auto")
    assert anonymous.model_info("quantized/x").gated == "auto"
    api.auth_check("quantized/x", write=True)
    with pytest.raises(GatedRepoError):
        reader.auth_check("quantized/x")
    api.grant_access("quantized/x", "reader")
    reader.auth_check("quantized/x")
    assert refused(lambda: api.grant_access("quantized/x", "no-such-user")) == 404
    assert refused(lambda: reader.update_repo_settings("quantized/x", gated=False)) == 403
    api.update_repo_settings("quantized/x", gated=False)
    assert anonymous.model_info("quantized/x").gated is False


def test_deleted_repo_is_gone_and_can_be_made_again(hub: LocalHub, api: HfApi) -> None:
    api.create_repo("quantized/x")
    hub.seed("quantized/x", FILES)
    api.delete_repo("quantized/x")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("quantized/x")
    api.create_repo("quantized/x")
    assert list(hub.files("quantized/x")) == [".gitattributes"]


def test_a_request_that_comes_too_late_leaves_nothing_of_a_deleted_repo(hub: LocalHub, api: HfApi) -> None:
    api.create_repo("quantized/x")
    late = hub.repo("quantized/x")
    api.delete_repo("quantized/x")
    with pytest.raises(HubError, match="not found"), late.locked():
        pass
    assert not late.folder.exists()
    api.create_repo("quantized/x")
    with late.locked():
        assert late.exists


# --- trusted publishing: which workflows get a token --------------------------------------------------------


@pytest.fixture
def trusting(hub: LocalHub, api: HfApi) -> LocalHub:
    """A Hub that knows the issuer, with one private repo that trusts one workflow."""
    hub.trust_issuer(ISSUER, public_key())
    api.create_repo(TARGET, private=True)
    trust(hub)
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


def test_the_response_is_as_documented_and_no_token_is_in_the_log(trusting: LocalHub) -> None:
    id_token = sign(trusting.endpoint)
    answer = exchange(trusting, id_token).json()
    token = answer.pop("access_token")
    kind = "urn:ietf:params:oauth:token-type:access_token"
    assert answer == {"token_type": "bearer", "expires_in": 3600, "issued_token_type": kind}
    assert token.startswith("hf_jwt_")
    log = (trusting.root / "requests.jsonl").read_text()
    assert [text in log for text in ("/oauth/token", token, id_token)] == [True, False, False]


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
    for resource in ("quantized/Other-awq", "quantized/missing", "datasets/quantized/x", "bot", "new", "a/b/c"):
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


# --- trusted publishing: what it allows ---------------------------------------------------------------------


def test_it_writes_content_to_its_repo_and_nothing_else(trusting: LocalHub, api: HfApi) -> None:
    other = "quantized/Other-awq"
    api.create_repo(other)
    client = workflow(trusting)
    commit = push(client, TARGET, {"a.safetensors": b"1" * 1000, "b.txt": b"2"})
    client.create_tag(TARGET, tag="v1", revision=commit.oid)
    assert trusting.history(TARGET)[0].author == "[OIDC]"
    assert set(trusting.files(TARGET, "v1")) == {".gitattributes", "a.safetensors", "b.txt"}
    for call in (
        lambda: push(client, other, {"b.txt": b"2"}),
        lambda: client.create_tag(other, tag="v1"),
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
    with LocalHub(tmp_path / "hub", limits=Limits(exchanged_token_s=1)) as short:
        short.trust_issuer(ISSUER, public_key())
        short.seed(TARGET, {"a": "1"})
        trust(short)
        client = workflow(short)
        assert client.model_info(TARGET).id == TARGET
        time.sleep(1.1)
        assert refused(lambda: client.model_info(TARGET)) == 401
