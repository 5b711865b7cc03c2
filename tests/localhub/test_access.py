"""Who may see, read and write what, and the errors that the client makes of a refusal."""

from __future__ import annotations

import stat
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
)

from bot.localhub import LocalHub
from bot.localhub.store import Content
from tests.support.commits import push, refused

GATED = "upstream/gated"
FILES: dict[str, Content] = {"config.json": "{}", "model.safetensors": b"\0" * 20}


def test_whoami(hub: LocalHub, api: HfApi, reader: HfApi) -> None:
    who = api.whoami()
    assert who["name"] == "bot"
    assert who["auth"]["accessToken"]["role"] == "write"
    assert [(org["name"], org["roleInOrg"]) for org in who["orgs"]] == [("quantized", "write")]
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"


def test_tokens_are_kept_in_a_private_file(hub: LocalHub) -> None:
    path = hub.root / "tokens.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert hub.token() in path.read_text()


def test_revoked_and_unknown_tokens_are_401_everywhere(hub: LocalHub) -> None:
    hub.seed("upstream/public", FILES)
    token = hub.add_token("someone")
    client = HfApi(endpoint=hub.endpoint, token=token)
    assert client.whoami()["name"] == "someone"
    hub.revoke_token(token)
    assert refused(client.whoami) == 401
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as caught:
        client.model_info("upstream/public")
    assert not isinstance(caught.value, RepositoryNotFoundError)


def test_writing_needs_the_role_and_the_namespace(
    hub: LocalHub, api: HfApi, reader: HfApi, anonymous: HfApi
) -> None:
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
    assert refused(lambda: api.create_repo("upstream/mine")) == 403
    with pytest.raises(RepositoryNotFoundError) as missing:
        anonymous.create_tag("quantized/x", tag="t")
    assert missing.value.response.status_code == 401
    assert refused(lambda: anonymous.create_repo("quantized/y")) == 401
    assert len(hub.history("quantized/x")) == 1


def test_org_role_read_does_not_write(hub: LocalHub) -> None:
    client = HfApi(endpoint=hub.endpoint, token=hub.add_token("guest", orgs={"quantized": "read"}))
    assert refused(lambda: client.create_repo("quantized/x")) == 403
    assert client.create_repo("own").repo_id == "guest/own"


def test_private_repo_does_not_exist_for_others(
    hub: LocalHub, api: HfApi, reader: HfApi, anonymous: HfApi, tmp_path: Path
) -> None:
    api.create_repo("quantized/secret", private=True)
    hub.seed("quantized/secret", FILES)
    for client, code in ((reader, 404), (anonymous, 401)):
        with pytest.raises(RepositoryNotFoundError) as caught:
            client.model_info("quantized/secret")
        assert caught.value.response.status_code == code
        with pytest.raises(RepositoryNotFoundError):
            client.hf_hub_download("quantized/secret", "config.json", cache_dir=tmp_path)
        assert not client.repo_exists("quantized/secret")
    assert api.model_info("quantized/secret").private is True
    assert Path(api.hf_hub_download("quantized/secret", "config.json", cache_dir=tmp_path)).read_text() == "{}"
    member = HfApi(endpoint=hub.endpoint, token=hub.add_token("colleague", role="read", orgs=["quantized"]))
    assert member.repo_exists("quantized/secret")

    api.update_repo_settings("quantized/secret", private=False)
    assert anonymous.model_info("quantized/secret").private is False
    api.update_repo_settings("quantized/secret", visibility="private")
    assert not anonymous.repo_exists("quantized/secret")


def test_gated_repo_shows_itself_and_keeps_its_files(
    hub: LocalHub, reader: HfApi, anonymous: HfApi, tmp_path: Path
) -> None:
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


def test_gating_is_set_and_removed_by_its_owner(
    hub: LocalHub, api: HfApi, reader: HfApi, anonymous: HfApi
) -> None:
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


def test_disabled_repo(hub: LocalHub, anonymous: HfApi) -> None:
    hub.seed("upstream/public", FILES)
    hub.disable("upstream/public")
    with pytest.raises(DisabledRepoError):
        anonymous.model_info("upstream/public")
    hub.disable("upstream/public", disabled=False)
    anonymous.model_info("upstream/public")


def test_deleted_repo_is_gone_and_can_be_made_again(hub: LocalHub, api: HfApi) -> None:
    api.create_repo("quantized/x")
    hub.seed("quantized/x", FILES)
    api.delete_repo("quantized/x")
    assert not api.repo_exists("quantized/x")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("quantized/x")
    api.delete_repo("quantized/x", missing_ok=True)
    api.create_repo("quantized/x")
    assert list(hub.files("quantized/x")) == [".gitattributes"]
