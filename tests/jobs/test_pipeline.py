"""The main job, end to end: real models, the real client over HTTP, the command line in processes of its own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.cli.demo import nudged
from tests.support.sandbox import MODELS, Quantized, Sandbox, SandboxBefore, build_sandbox
from tests.support.small_sandbox import SOURCE, TARGET, WEIGHTS, assert_published


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, quantized: Quantized) -> Iterator[Sandbox]:
    """Both models published once, by a run that goes on after measuring."""
    sandbox = build_sandbox(tmp_path_factory.mktemp("pipeline") / "sandbox")
    with sandbox.hub:
        sandbox.prepare(quantized)
        result = sandbox.call("run")
        assert result.returncode == 0, result.stderr
        yield sandbox


def test_small_files_are_upstreams_bytes(sandbox: Sandbox) -> None:
    for name in MODELS:
        upstream, published = sandbox.hub.files(f"lab/{name}"), sandbox.hub.files(f"quantized/{name}-awq")
        own = {"README.md", "config.json", "provenance.json", ".gitattributes"}
        small = {path for path in upstream if "safetensors" not in path} - own
        if name == "qwen3-tiny":
            # The one documented exception: the template is also put where some servers read it.
            config = json.loads(published["tokenizer_config.json"])
            assert config.pop("chat_template") == upstream["chat_template.jinja"].decode()
            assert config == json.loads(upstream["tokenizer_config.json"])
            small -= {"tokenizer_config.json"}
        assert {"tokenizer.json", "generation_config.json", "LICENSE"} <= small
        for path in small:
            assert published[path] == upstream[path], path


def test_the_cards_of_both_models_are_the_golden_files(sandbox: Sandbox) -> None:
    """After a wanted change: GOLDEN=write pytest tests/jobs/test_pipeline.py, then read the diff."""
    for name in MODELS:
        text = sandbox.hub.files(f"quantized/{name}-awq")["README.md"].decode()
        # Figures, digests and versions are another machine's; the words and the shape are not.
        text = re.sub(r"upstream-[0-9a-f]{8}-[0-9a-f]{8}", "TAG", text)
        text = re.sub(r"\b[0-9a-f]{16,64}\b", "HASH", text)
        text = re.sub(r"[-+]?\d+(?:[.,]\d+)*(?:\+cpu)?", "#", text)
        golden = Path(__file__).parent / "golden" / f"{name}.md"
        if os.environ.get("GOLDEN") == "write":
            golden.parent.mkdir(exist_ok=True)
            golden.write_text(text)
        assert text == golden.read_text(), name


def test_the_cards_of_both_models_say_what_their_files_bear_out(sandbox: Sandbox) -> None:
    for name in MODELS:
        result = sandbox.call("lint", f"quantized/{name}-awq")
        assert result.returncode == 0, result.stdout
        assert "0 wrong, 0 not checkable" in result.stdout


def test_a_rerun_downloads_nothing_and_stays_within_its_calls(sandbox: Sandbox) -> None:
    sandbox.hub.clear_requests()
    result = sandbox.call("run")
    assert result.returncode == 0
    assert "nothing to do" in result.stdout
    requests = [request for request in sandbox.hub.requests if "agent-harnesses" not in request.path]
    assert {request.method for request in requests} == {"GET"}
    resolved = [request.path for request in requests if "/resolve/" in request.path]
    assert len(resolved) == len(MODELS)
    assert all(path.endswith("/provenance.json") for path in resolved)
    assert len(requests) - len(resolved) == 2 * len(MODELS)
    assert not list((sandbox.root / "work").glob("*/quantized"))


def test_changed_weights_are_one_new_release_with_a_second_tag(sandbox_before: SandboxBefore) -> None:
    sandbox = sandbox_before()
    assert_published(sandbox, sandbox.call("run"))
    sandbox.hub.seed(SOURCE, {WEIGHTS: nudged(sandbox.hub.files(SOURCE)[WEIGHTS])})
    [job] = sandbox.plan()["jobs"]
    assert job["reason"] == "upstream changed: model.safetensors"
    assert_published(sandbox, sandbox.call("run"))
    assert sum(ref.startswith("refs/tags/") for ref in sandbox.hub.refs(TARGET)) == 2
    assert sandbox.plan()["jobs"] == []


def test_a_changed_generation_config_is_a_refresh_that_leaves_the_weights_alone(sandbox: Sandbox) -> None:
    before = sandbox.hub.files("quantized/llama-tiny-awq")
    content = b'{"do_sample": true, "temperature": 0.25, "transformers_version": "4.51.3"}'
    sandbox.hub.seed("lab/llama-tiny", {"generation_config.json": content})
    [job] = sandbox.plan()["jobs"]
    assert (job["kind"], job["reason"]) == ("refresh", "small files changed upstream: generation_config.json")
    result = sandbox.call("run")
    assert result.returncode == 0, result.stderr
    after = sandbox.hub.files("quantized/llama-tiny-awq")
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    assert changed == {"generation_config.json", "README.md", "provenance.json"}
    assert after["generation_config.json"] == content
    assert sandbox.plan()["jobs"] == []


def test_a_refresh_that_breaks_the_tokenizer_is_not_published(sandbox: Sandbox) -> None:
    before = sandbox.hub.refs("quantized/qwen3-tiny-awq")
    sandbox.hub.seed("lab/qwen3-tiny", {"chat_template.jinja": "{% for message in %}"})
    result = sandbox.call("run", "--only", "lab/qwen3-tiny")
    assert result.returncode == 3
    assert "chat_template.jinja: the chat template has a syntax error: line 1" in result.stderr
    assert sandbox.hub.refs("quantized/qwen3-tiny-awq") == before


def test_a_reader_can_verify_what_was_published(sandbox: Sandbox) -> None:
    reader = sandbox.hub.token("reader", role="read")
    result = sandbox.call("verify", "quantized/llama-tiny-awq", "--json", token=reader)
    checks = json.loads(result.stdout)
    assert result.returncode == 0
    assert [check["name"] for check in checks if check["status"] != "ok"] == ["signature"]  # there is none
    assert any(check["name"].startswith("source lab/llama-tiny@") for check in checks)
    sandbox.hub.seed("quantized/llama-tiny-awq", {"extra.bin": b"x"})
    changed = sandbox.call("verify", "quantized/llama-tiny-awq")
    assert (changed.returncode, "extra.bin" in changed.stdout) == (7, True)
