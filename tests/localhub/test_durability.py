"""What is on disk: restarts, killed servers, concurrent clients, ids that match git's, and the log of requests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session

from bot.errors import EnvironmentProblem
from bot.hub.session import call
from bot.localhub import Fault, LocalHub
from bot.localhub.repo import Repo
from tests.support.commits import push, refused

REPO = "quantized/x"
SERVE = """
import sys
from functools import partial
from pathlib import Path
from bot.localhub import serve
serve(Path(sys.argv[1]), on_start=lambda hub: print(hub.endpoint, flush=True))
"""


def check(repo: Repo) -> int:
    """Every commit of every ref has objects that match their sha256; returns the length of main."""
    for sha in repo.refs().values():
        for commit in repo.history(sha):
            for entry in commit.files.values():
                content = repo.object_path(entry.sha256).read_bytes()
                assert hashlib.sha256(content).hexdigest() == entry.sha256
                assert len(content) == entry.size_bytes
    return len(list(repo.history(repo.resolve("main"))))


def test_restart_keeps_everything(tmp_path: Path) -> None:
    with LocalHub(tmp_path / "hub") as hub:
        token = hub.add_token("someone", orgs=["quantized"])
        api = HfApi(endpoint=hub.endpoint, token=token)
        api.create_repo(REPO, private=True)
        sha = push(api, REPO, {"a.bin": b"\0\1", "b": b"b"}).oid
        api.create_tag(REPO, tag="v1")
        api.update_repo_settings(REPO, gated="auto")
        files = hub.files(REPO)
    with LocalHub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.endpoint, token=token)
        info = api.model_info(REPO, revision="v1")
        assert (info.sha, info.private, info.gated) == (sha, True, "auto")
        assert hub.files(REPO, "v1") == files
        assert hub.requests[0].path == f"/api/models/{REPO}/revision/v1"


def test_a_folder_is_served_by_one_process(hub: LocalHub) -> None:
    with pytest.raises(EnvironmentProblem, match="another process serves this folder"):
        LocalHub(hub.root).start()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "notes.txt").write_text("mine")
    with pytest.raises(EnvironmentProblem, match="is not a local Hub"):
        LocalHub(tmp_path)
    with pytest.raises(EnvironmentProblem, match="is a file"):
        LocalHub(tmp_path / "tmp" / "notes.txt")
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp", "notes.txt"]


def test_a_given_port_is_used_or_refused(tmp_path: Path) -> None:
    with LocalHub(tmp_path / "first") as hub:
        port = int(hub.endpoint.rpartition(":")[2])
        with pytest.raises(EnvironmentProblem, match=f"port {port}: Address already in use"):
            LocalHub(tmp_path / "second", port=port).start()
    with LocalHub(tmp_path / "second", port=port) as hub:
        assert hub.endpoint == f"http://127.0.0.1:{port}"


def test_failure_at_any_step_of_a_commit_changes_nothing(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.seed(REPO, {"a": "1"})
    before, sha = hub.files(REPO), hub.history(REPO)[0].sha
    rename, steps = Path.replace, 0
    for step in range(100):
        calls = 0

        def failing(path: Path, target: Path, step: int = step) -> Path:
            nonlocal calls
            calls += 1
            if calls > step:
                raise OSError("the disk is gone")
            return rename(path, target)

        monkeypatch.setattr(Path, "replace", failing)
        try:
            hub.seed(REPO, {"a": f"2{step}", "b.bin": b"\0" + bytes([step]), "c/d.txt": f"{step}"})
        except OSError:
            steps += 1
        else:
            break
        finally:
            monkeypatch.undo()
        assert hub.files(REPO) == before
        assert hub.history(REPO)[0].sha == sha
        check(hub.repo(REPO))
    assert steps >= 5  # three objects, a commit and a ref
    assert hub.history(REPO)[0].parent == sha


def start_server(root: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def push_plainly(endpoint: str, token: str, name: str) -> str:
    """A commit with a small and a large file, without the client: it would retry for a minute."""
    session, content = get_session(), os.urandom(50_000)
    headers = {"authorization": f"Bearer {token}"}
    sent = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    wanted = {"operation": "upload", "transfers": ["basic"], "objects": [sent]}
    batch = session.post(f"{endpoint}/{REPO}.git/info/lfs/objects/batch", headers=headers, json=wanted)
    upload = batch.raise_for_status().json()["objects"][0]["actions"]["upload"]["href"]
    session.put(upload, content=content).raise_for_status()
    lines = [
        {"key": "header", "value": {"summary": name}},
        {"key": "file", "value": {"path": name, "content": "AAAA", "encoding": "base64"}},
        {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", **sent}},
    ]
    body = "\n".join(json.dumps(line) for line in lines)
    answer = session.post(f"{endpoint}/api/models/{REPO}/commit/main", headers=headers, content=body)
    return str(answer.raise_for_status().json()["commitOid"])


def test_killed_server_leaves_whole_repos(tmp_path: Path) -> None:
    root = tmp_path / "hub"
    with LocalHub(root) as hub:
        token = hub.token()
        hub.seed(REPO, {"a": "1"})
        answered = [hub.history(REPO)[0].sha]
    chance = random.Random(7)
    for round_number in range(6):
        process, endpoint = start_server(root)
        timer = threading.Timer(chance.random() * 0.3, process.kill)
        answered.append(push_plainly(endpoint, token, f"{round_number}-first"))
        timer.start()
        with contextlib.suppress(httpx2.HTTPError):
            for number in range(1000):
                answered.append(push_plainly(endpoint, token, f"{round_number}-{number}"))
        timer.join()
        process.communicate()
        with LocalHub(root) as hub:
            assert check(hub.repo(REPO)) >= len(answered)
            # Every acknowledged commit is there, and at most one more.
            assert answered[-1] in [commit.sha for commit in hub.history(REPO)[:2]]
            assert list(hub.store.temporary.iterdir()) == []


def test_server_runs_without_the_client_library() -> None:
    code = "import sys, bot.localhub; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_interrupt_ends_the_server_cleanly(tmp_path: Path) -> None:
    process, endpoint = start_server(tmp_path / "hub")
    assert endpoint.startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert output == ""


def test_concurrent_commits_and_creations(hub: LocalHub, api: HfApi) -> None:
    def create(number: int) -> int:
        try:
            api.create_repo(REPO)
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    def push_one(number: int) -> str:
        return push(api, REPO, {f"f{number}": b"x", "w.bin": b"\0same"}).oid

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(create, range(4))) == [200, 409, 409, 409]
        base = hub.history(REPO)[0].sha
        made = list(pool.map(push_one, range(16)))
    assert {commit.sha for commit in hub.history(REPO)} == {base, *made}
    assert len(hub.files(REPO)) == 18


@pytest.mark.skipif(shutil.which("git") is None, reason="compares with git itself")
def test_ids_are_those_of_git(hub: LocalHub, tmp_path: Path) -> None:
    hub.seed(REPO, {"a.txt": "1", "a/b.txt": "2", "a-b/c": "3", "w.bin": b"\0\1\2"}, message="first")
    sha = hub.seed(REPO, {"a/ü.txt": "4"}, message="second")
    work = tmp_path / "work"
    work.mkdir()
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(tmp_path)}

    def git(*arguments: str, **extra: str) -> str:
        command = ["git", "-c", "core.autocrlf=false", "-c", "core.attributesFile=/dev/null", *arguments]
        return subprocess.check_output(command, cwd=work, env={**environment, **extra}, text=True).strip()

    git("init", "--quiet")
    for commit in reversed(hub.history(REPO)):
        for path, entry in commit.files.items():
            target = work / path
            target.parent.mkdir(exist_ok=True)
            content = hub.repo(REPO).read(entry)
            pointer = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{entry.sha256}\nsize {len(content)}\n"
            )
            target.write_bytes(pointer.encode() if entry.is_lfs else content)
            # The filter named in .gitattributes is not installed, so git takes the pointer as it is.
            assert git("hash-object", "--no-filters", path) == entry.blob_id
        git("-c", "filter.lfs.clean=cat", "add", "--all")
        who = {"NAME": commit.author, "EMAIL": f"{commit.author}@users.noreply.localhost"}
        identity = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
        dates = dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), f"{commit.date[:19]}+0000")
        git("commit", "--quiet", "-m", commit.title, **identity, **dates)
        assert git("rev-parse", "HEAD") == commit.sha
    assert git("rev-parse", "HEAD") == sha


# --- faults and the log of requests -------------------------------------------------------------------------


def test_upload_that_is_refused_at_its_start_is_read_to_its_end(hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    hub.faults.add(Fault(path="/uploads/", method="PUT", status=503, headers={"Retry-After": "0"}))
    call(lambda: push(api, REPO, {"a.bin": b"\0" * 200_000}))  # it is tried again
    assert hub.files(REPO)["a.bin"] == b"\0" * 200_000


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


def test_requests_are_logged_in_memory_and_on_disk(hub: LocalHub, api: HfApi, anonymous: HfApi) -> None:
    api.create_repo(REPO)
    hub.clear_requests()
    anonymous.model_info(REPO, expand=["sha"])
    api.list_repo_refs(REPO)
    first, second = hub.requests
    assert (first.method, first.path, first.query) == ("GET", f"/api/models/{REPO}", "expand=sha")
    assert (first.user, first.authenticated, first.host, first.status) == (None, False, "hub", 200)
    assert first.bytes_sent > 20
    assert (second.user, second.authenticated) == ("bot", True)
    lines = (hub.root / "requests.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["/api/repos/create", first.path, second.path]
