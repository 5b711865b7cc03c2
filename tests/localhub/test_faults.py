"""Injected faults, and the log of requests."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session

from bot.localhub import Fault, LocalHub
from tests.support.commits import push, refused

REPO = "quantized/x"


def test_status_faults_count_down(hub: LocalHub, api: HfApi) -> None:
    hub.faults.add(Fault(path="whoami", status=503, times=2, skip=1))
    api.whoami()
    for _ in range(2):
        assert refused(api.whoami) == 503
    assert hub.faults.pending == ()
    api.whoami()
    assert [record.fault for record in hub.requests] == [False, True, True, False]


def test_status_fault_has_headers_and_matches_the_method(hub: LocalHub, api: HfApi) -> None:
    rate = '"api";r=0;t=7'
    hub.faults.add(Fault(path="repos/create", method="POST", status=429, headers={"RateLimit": rate}))
    api.whoami()
    with pytest.raises(HfHubHTTPError, match="Retry after 7 seconds"):
        api.create_repo(REPO)
    assert not hub.store.exists(REPO)
    api.create_repo(REPO)


def test_client_retries_a_503_during_an_upload(hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    hub.faults.add(Fault(path="/uploads/", method="PUT", status=503, headers={"Retry-After": "0"}))
    push(api, REPO, {"a.bin": b"\0" * 200_000})
    assert hub.files(REPO)["a.bin"] == b"\0" * 200_000


def test_commit_with_a_lost_answer_is_made(hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    hub.faults.add(Fault(path=f"/api/models/{REPO}/commit/", lose_answer=True))
    with pytest.raises(Exception, match=r"(?i)disconnected|closed|reset"):
        push(api, REPO, {"a": b"1"})
    assert hub.files(REPO)["a"] == b"1"
    assert hub.requests[-1].status == 200
    assert hub.requests[-1].fault
    assert api.model_info(REPO).sha == hub.history(REPO)[0].sha


def test_cut_download_is_resumed_by_the_client(
    hub: LocalHub, api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)
    content = bytes(range(256)) * 2000
    hub.seed(REPO, {"a.bin": content})
    hub.faults.add(Fault(path=r"/objects/.*/a\.bin", method="GET", cut_after_bytes=100_000))
    path = api.hf_hub_download(REPO, "a.bin", cache_dir=tmp_path)
    assert Path(path).read_bytes() == content
    fetched = [record for record in hub.requests if record.host == "files"]
    assert fetched[0].bytes_sent == 100_000
    assert fetched[1].status == 206
    assert fetched[1].range is not None
    assert sum(record.bytes_sent for record in fetched) >= len(content)


def test_delay(hub: LocalHub, api: HfApi) -> None:
    hub.faults.add(Fault(path="whoami", delay_s=0.3))
    started = time.monotonic()
    api.whoami()
    assert time.monotonic() - started >= 0.3


def test_another_process_can_add_faults_and_read_the_log(hub: LocalHub, api: HfApi) -> None:
    session, headers = get_session(), {"X-Local-Hub": "1"}
    url = f"{hub.endpoint}/_local"
    assert session.post(f"{url}/faults", json={"status": 503}).status_code == 403
    for fault, status in (({"nonsense": 1}, 400), ({"path": "("}, 400), ({"status": 503, "times": None}, 200)):
        assert session.post(f"{url}/faults", json=fault, headers=headers).status_code == status
    assert refused(api.whoami) == 503
    assert session.delete(f"{url}/faults", headers=headers).json() == []
    api.whoami()
    seen = session.get(f"{url}/requests", headers=headers).json()
    assert [record["status"] for record in seen if record["path"] == "/api/whoami-v2"] == [503, 200]
    assert session.delete(f"{url}/requests", headers=headers).json() == []


def test_request_log(hub: LocalHub, api: HfApi, anonymous: HfApi) -> None:
    api.create_repo(REPO)
    hub.clear_requests()
    anonymous.model_info(REPO, expand=["sha"])
    api.list_repo_refs(REPO)
    first, second = hub.requests
    assert (first.method, first.path, first.query) == ("GET", f"/api/models/{REPO}", "expand=sha")
    assert first.status == 200
    assert (first.user, first.authenticated, first.host) == (None, False, "hub")
    assert first.bytes_sent > 20
    assert (second.user, second.authenticated) == ("bot", True)
    lines = (hub.root / "requests.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines][-2:] == [first.path, second.path]
    assert len(lines) == 3
