"""No secret is in anything that the bot writes, whatever it does and however it fails.

A secret of each kind is planted, the real command line runs against the local Hub, and all that was written is
searched: output, logs, pages, issues, jobs, temporary files, what is published, and command lines of processes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping

import pytest

from bot.localhub import Fault
from tests.support.github_api.id_token import ISSUER, IdTokens, public_key
from tests.support.github_api.server import GitHubApi
from tests.support.sandbox import SandboxBefore
from tests.support.small_sandbox import SOURCE, TARGET, edit_watchlist
from tests.support.workflow_identity import trust
from tests.trust.canaries import Canaries, Place, plant

# Whoever asks first prepares the small sandbox, and a busy machine takes its time.
pytestmark = pytest.mark.timeout(900)

PREPARED = ("pull", "quantize", "evaluate", "card")
LOGGED = ("--verbose", "--log-file", "bot.log")
Scenario = Callable[[Place], None]


def _echo(place: Place, status: int, path: str = "", **fields: object) -> None:
    """The Hub answers with all secrets, in a body and in the header whose text the client shows."""
    headers = {"X-Error-Message": place.canaries.echo(), "X-Request-Id": place.planted["HF_TOKEN"]}
    body = json.dumps({"error": place.canaries.echo()})
    place.sandbox.hub.faults.add(Fault(status=status, path=path, headers=headers, body=body, **fields))  # type: ignore[arg-type]


def _publish(place: Place, code: int, said: str) -> None:
    [job] = place.sandbox.jobs
    done = place.call(*LOGGED, "publish", "--job", str(job), code=code)
    assert said in done.stderr


def published_and_signed(place: Place) -> None:
    _publish(place, 0, "")
    assert "model.sig" in place.sandbox.hub.files(TARGET)


def refused(place: Place) -> None:
    _echo(place, 401, r"/preupload/", times=None)
    _publish(place, 8, "the Hub refuses the token")


def refused_in_other_ways(place: Place) -> None:
    for status, path in ((403, r"/commit/"), (400, r"/commit/"), (400, r"/validate-yaml"), (413, r"/preupload/")):
        _echo(place, status, path, times=None)
        _publish(place, 7, "error:")
        place.sandbox.hub.faults.clear()


def answered_with_nonsense(place: Place) -> None:
    """Of a status that says that all is well."""
    for path, code in ((r"/refs", 8), (r"/preupload/", 8), (r"/commit/", 7)):
        _echo(place, 200, path, times=None)
        _publish(place, code, "error:")
        place.sandbox.hub.faults.clear()


def failing_for_a_moment(place: Place) -> None:
    _echo(place, 500, r"/api/models/", times=2)
    _echo(place, 503, r"/resolve/", times=2)
    assert "retry 1 of" in place.call(*LOGGED, "plan").stderr
    place.call("plan", "--json")


def failing_for_good(place: Place) -> None:
    _echo(place, 500, times=None)
    assert "answers 500" in place.call(*LOGGED, "plan").stdout


BROKEN = """
import os
from bot.cli import app
from bot.jobs import pipeline

def broken(*args, **more):
    token, key = os.environ["HF_WRITE_TOKEN"], os.environ["AWQ_BOT_SIGNING_KEY"]
    try:
        raise KeyError(os.environ)
    except KeyError as error:
        raise RuntimeError(f"asked with {token!r} and {key!r} and {key}") from error

pipeline.NAME = broken
app.main()
"""


def broken(place: Place) -> None:
    """An error that no code expects, with secrets in its message, its variables and its cause."""
    done = place.call("plan", code=1, script=BROKEN.replace("NAME", "plan"))
    assert "RuntimeError: asked with '***' and" in done.stderr


def broken_elsewhere(place: Place) -> None:
    done = place.call(*LOGGED, "run", code=1, script=BROKEN.replace("NAME", "run_job"))
    assert "unexpected RuntimeError: asked with" in done.stderr
    assert "Traceback" in (place.root / "bot.log").read_text()
    place.more = _of_a_step(place)
    done = place.call("actions", "plan", code=1, script=BROKEN.replace("NAME", "plan"))
    assert "::error title=The plan failed" in done.stdout
    assert "asked with" in (place.root / "summary.md").read_text()


def _of_a_step(place: Place) -> dict[str, str]:
    files = {"GITHUB_OUTPUT": str(place.root / "output"), "GITHUB_STEP_SUMMARY": str(place.root / "summary.md")}
    return {"GITHUB_ACTIONS": "true"} | files


def whole_run(place: Place) -> None:
    """With the client's own log of its requests, and a refresh after it."""
    place.more = {"HF_DEBUG": "1"}
    done = place.call(*LOGGED, "run")
    assert "Send: curl" in done.stderr
    place.sandbox.hub.seed(SOURCE, {"generation_config.json": '{"temperature": 0.5}'})
    place.call(*LOGGED, "run")
    assert "generation_config.json" in place.sandbox.hub.files(TARGET)
    place.call("verify", TARGET, "--require-signature", str(place.signing.signer))
    place.call("plan", "--json")


def looked_at(place: Place) -> None:
    """Without a key at first, and signed later."""
    key = place.planted["AWQ_BOT_SIGNING_KEY"]
    place.more = {"AWQ_BOT_SIGNING_KEY": ""}
    place.call("run")
    place.more = {"AWQ_BOT_SIGNING_KEY": key}
    place.call(*LOGGED, "sign", TARGET)
    place.call("verify", TARGET, "--json")
    tool = place.root / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\nenv > {tool.parent}/environment\n")
    tool.chmod(0o755)
    place.more["PATH"] = f"{tool.parent}:{os.environ['PATH']}"
    place.call("doctor", "--json")
    assert "PATH=" in (tool.parent / "environment").read_text()
    place.call("create-target", "--json")
    _echo(place, 401, times=None)
    place.call("doctor", code=8)
    place.call("verify", TARGET, code=8)
    place.call("sign", TARGET, code=8)
    place.call("create-target", code=8)


def in_a_workflow(place: Place) -> None:
    """Its issues are searched, too."""
    with GitHubApi() as api:
        token = place.planted["GITHUB_TOKEN"]
        api._accounts[token] = api._accounts[api.token()]
        place.more = _of_a_step(place) | api.environment(token)
        place.call("actions", "plan")
        [job] = json.loads((place.root / "plan" / "plan.json").read_text())["jobs"]
        words = ("--job-id", job["job_id"], "--results", "results")
        place.call("actions", "quantize", *words)
        artifact = ("--artifact", str(place.sandbox.jobs[0]))
        _echo(place, 403, r"/commit/", times=None)
        place.call("actions", "publish", *words, *artifact, code=7)
        place.call("actions", "report")
        place.sandbox.hub.faults.clear()
        place.call("actions", "publish", *words, *artifact)
        place.call("actions", "report")
        api.fail(status=401, body=place.canaries.echo())
        place.call("actions", "deadman")
        api.fail(status=500, body=place.canaries.echo(), path="issues", method="POST")
        place.call("actions", "keepalive")
        assert api.issues
        for text in (*api.issues.values(), *api.comments.values()):
            place.search("an issue", repr(text))


def with_an_identity(place: Place) -> None:
    """The client exchanges it for a token, which is in no variable."""
    hub = place.sandbox.hub
    hub.trust_issuer(ISSUER, public_key())
    with IdTokens() as tokens:
        place.more = tokens.environment | {"HF_OIDC_RESOURCE": TARGET, "HF_DEBUG": "1"} | _of_a_step(place)
        # The tokens that it gets: their beginnings, which all of them share.
        made = {"id-token": "eyJhbGciOiJSUzI1NiIs", "exchanged token": "hf_jwt_"}
        place.canaries = Canaries({**place.canaries.values, **made, "request token": tokens.request_token})
        place.call("create-target")
        _publish(place, 7, "error:")
        trust(hub, TARGET)
        _publish(place, 0, "private until")


def mistaken(place: Place) -> None:
    """Secrets where none belong: in the watchlist, in the wrong variable, in a proxy that does not answer."""
    token, password = place.planted["HF_WRITE_TOKEN"], place.canaries.values["proxy"]
    before = edit_watchlist(place.sandbox, "  - lab/small", f"  - lab/small\n  - {token}\n  - token: {token}")
    place.call("check", code=2)
    place.more = _of_a_step(place)
    place.call("actions", "plan", code=2)
    (place.root / "watchlist.yaml").write_text(before)
    url = place.sandbox.hub.endpoint.replace("://", f"://me:{password}@")
    for name, value in (
        ("HF_ENDPOINT", token),
        ("HF_ENDPOINT", url),
        ("HF_OIDC_RESOURCE", f"{token}/{token}/x"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", token),
        ("HTTP_PROXY", f"http://me:{password}@127.0.0.1:9"),
        ("AWQ_BOT_SIGNING_KEY", place.planted["AWQ_BOT_SIGNING_KEY"].replace("M", "N", 5)),
    ):
        place.more = {name: value}
        [job] = place.sandbox.jobs
        place.call(*LOGGED, "publish", "--job", str(job), code=8)
        if name != "AWQ_BOT_SIGNING_KEY":
            place.call("doctor", code=8)


# name -> what is done, whether `make test` does it, and the stages that have not run before.
SCENARIOS: Mapping[str, tuple[Scenario, bool, tuple[str, ...]]] = {
    "published and signed": (published_and_signed, True, ()),
    "refused": (refused, True, ()),
    "an unexpected error": (broken, True, ()),
    "refused in other ways": (refused_in_other_ways, False, ()),
    "answered with nonsense": (answered_with_nonsense, False, ()),
    "failing for a moment": (failing_for_a_moment, False, ()),
    "failing for good": (failing_for_good, False, ()),
    "unexpected errors elsewhere": (broken_elsewhere, False, ()),
    "a whole run": (whole_run, False, PREPARED),
    "looked at and signed": (looked_at, False, ()),
    "in a workflow": (in_a_workflow, False, ()),
    "with an identity": (with_an_identity, False, ()),
    "mistakes": (mistaken, False, ()),
}


def _cases() -> list[object]:
    return [
        pytest.param(name, id=name, marks=() if quick else pytest.mark.slow)
        for name, (_, quick, _) in SCENARIOS.items()
    ]


@pytest.mark.parametrize("name", _cases())
def test_no_secret_is_written(
    name: str, sandbox_before: SandboxBefore, record_property: Callable[[str, object], None]
) -> None:
    act, _, before = SCENARIOS[name]
    place = plant(sandbox_before(*before))
    try:
        act(place)
        place.search_all()
    finally:
        record_property("secrets_searched", place.searched)
        record_property("secrets_found", len(place.found))
    assert place.found == []


def test_the_search_finds_what_is_planted(sandbox_before: SandboxBefore) -> None:
    """In every form, in every file, in output, and in what another process shows."""
    place = plant(sandbox_before())
    kinds = set(place.canaries.values)
    for word in place.canaries.echo().split():
        place.search("a word of an echo", word)
    assert {text.partition(" in ")[0] for text in place.found} == kinds
    place.found.clear()
    (place.root / "work" / "left.bin").write_bytes(b"\0" + place.planted["HF_TOKEN"].encode())
    place.search_all()
    assert place.found == ["HF_TOKEN in work/left.bin"]
    place.found.clear()
    script = (
        "import os, subprocess, sys, tempfile\n"
        "print(os.environ['GH_TOKEN'])\n"
        "with tempfile.NamedTemporaryFile() as file:\n"
        "    file.write(os.environ['HF_TOKEN'].encode()); file.flush()\n"
        "    subprocess.run(['sleep', '1'], env={'X': os.environ['HF_WRITE_TOKEN']})\n"
        "    subprocess.run(['sh', '-c', 'sleep 1; : ' + os.environ['HF_CREATE_TOKEN']], env={})\n"
    )
    place.call(script=script)
    found = {text.partition(" in ")[0] for text in place.found}
    assert found == {"GH_TOKEN", "HF_TOKEN", "HF_WRITE_TOKEN", "HF_CREATE_TOKEN"}
