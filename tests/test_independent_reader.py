"""An independent reader, in its own environment, loads what the local Hub serves and agrees with us."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bot.calibration.evaluation import evaluation_tokens
from tests.support.reader import Reader
from tests.support.sandbox import ASSETS, MODELS, build_sandbox


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_gptqmodel_reads_the_published_repos_and_agrees_to_one_percent(tmp_path: Path) -> None:
    sandbox = build_sandbox(tmp_path / "sandbox")
    with sandbox.hub:
        result = sandbox.call("run")
        assert result.returncode == 0, result.stderr
        reader = Reader(endpoint=sandbox.hub.endpoint, home=tmp_path / "home")
        for name in MODELS:
            provenance = json.loads(sandbox.hub.files(f"quantized/{name}-awq")["provenance.json"])
            tokens, _ = evaluation_tokens(tokenizer_folder=ASSETS / name, trust_remote_code=False)
            save_file({"input_ids": tokens.to(torch.int64)}, tmp_path / "tokens.safetensors")
            theirs = reader.perplexity(f"quantized/{name}-awq", provenance["tag"], tmp_path / "tokens.safetensors")
            assert theirs == pytest.approx(provenance["report"]["perplexity_quantized"], rel=0.01)
