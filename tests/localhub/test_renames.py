"""Earlier names of a repo, and other spellings, lead to it for every kind of request, as on the real Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import get_session

from bot.localhub import LocalHub
from tests.support.commits import refused

OLD, NEW = "quantized/Old", "quantized/New"


@pytest.fixture(params=[OLD, "quantized/new"], ids=["renamed", "spelled otherwise"])
def name(request: pytest.FixtureRequest, hub: LocalHub) -> str:
    """Another name of NEW."""
    hub.seed(OLD, {"config.json": "{}", "model.safetensors": b"x" * 100, "a b#1.txt": "odd"})
    hub.seed(OLD, {"config.json": "[]"}, revision="refs/pr/1")
    hub.rename(OLD, NEW)
    return str(request.param)


def test_what_is_read_is_the_repo_and_its_own_id(name: str, api: HfApi, tmp_path: Path) -> None:
    assert api.model_info(name, files_metadata=True).id == NEW
    assert api.model_info(name, revision="refs/pr/1").id == NEW
    assert [branch.name for branch in api.list_repo_refs(name).branches] == ["main"]
    assert len(list(api.list_repo_tree(name, recursive=True))) == 4
    for path, content in {"a b#1.txt": b"odd", "model.safetensors": b"x" * 100}.items():
        assert Path(api.hf_hub_download(name, path, local_dir=tmp_path)).read_bytes() == content
    other = api.hf_hub_download(name, "config.json", revision="refs/pr/1", local_dir=tmp_path)
    assert Path(other).read_text() == "[]"


def test_what_is_written_reaches_the_repo(name: str, hub: LocalHub, api: HfApi) -> None:
    files = [CommitOperationAdd("b.safetensors", b"y" * 50), CommitOperationAdd("c.txt", b"z")]
    api.create_commit(name, files, commit_message="more")
    api.create_tag(name, tag="v1")
    api.update_repo_settings(name, private=True)
    assert {"b.safetensors", "c.txt"} < hub.files(NEW, "v1").keys()
    assert hub.repo(NEW).settings().private


def test_the_new_name_of_a_private_repo_is_not_told(
    name: str, hub: LocalHub, reader: HfApi, anonymous: HfApi
) -> None:
    hub.repo(NEW).update_settings(private=True)
    for client in (reader, anonymous):
        assert not client.repo_exists(name)
    headers = {"Authorization": f"Bearer {hub.token('reader', role='read')}"}
    answer = get_session().get(f"{hub.endpoint}/api/models/{name}", headers=headers, follow_redirects=False)
    assert (answer.status_code, NEW in answer.text) == (404, False)


def test_an_earlier_name_can_be_taken_and_another_spelling_cannot(hub: LocalHub, api: HfApi) -> None:
    hub.seed(OLD, {"a": "1"})
    hub.rename(OLD, NEW)
    assert refused(lambda: api.create_repo("quantized/NEW")) == 409
    api.create_repo(OLD)
    assert api.model_info(OLD).id == OLD
    assert api.model_info(NEW).id == NEW


def test_a_request_whose_body_names_an_earlier_name_is_answered(hub: LocalHub, api: HfApi) -> None:
    hub.seed(OLD, {"a": "1"})
    hub.rename(OLD, NEW)
    assert refused(lambda: api.delete_repo(OLD)) == 404
    assert hub.store.exists(NEW)
