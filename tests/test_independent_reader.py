"""An independent reader, in its own environment, loads what the local Hub serves and agrees with us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bot.calibration.evaluation import evaluation_tokens
from tests.support.sandbox import MODELS, build_sandbox

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".venv-reader"
PINS = ("torch==2.13.0", "transformers==5.23.0", "gptqmodel>=7.6,<7.7")


@pytest.fixture(scope="module")
def reader() -> Path:
    """The python of an environment with gptqmodel, made once."""
    python, installed = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".installed"
    if not installed.exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PINS], check=True)
        installed.touch()
    return python


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_gptqmodel_reads_the_published_repos_and_agrees_to_one_percent(reader: Path, tmp_path: Path) -> None:
    sandbox = build_sandbox(tmp_path / "sandbox")
    with sandbox.hub:
        result = sandbox.call("run")
        assert result.returncode == 0, result.stderr
        for name in MODELS:
            provenance = json.loads(sandbox.hub.files(f"quantized/{name}-awq")["provenance.json"])
            tokens, _ = evaluation_tokens(
                tokenizer_folder=ROOT / "tests" / "assets" / name, trust_remote_code=False
            )
            save_file({"input_ids": tokens.to(torch.int64)}, tmp_path / "tokens.safetensors")
            words = [f"quantized/{name}-awq", provenance["tag"], str(tmp_path / "tokens.safetensors")]
            environment = {"PATH": os.environ["PATH"], "HF_HOME": str(tmp_path / "home")}
            environment |= {"HF_ENDPOINT": sandbox.hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
            done = subprocess.run(
                [str(reader), str(ROOT / "tests" / "support" / "independent_reader.py"), *words],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            theirs = json.loads(done.stdout.splitlines()[-1])["perplexity"]
            ours = provenance["report"]["perplexity_quantized"]
            assert theirs == pytest.approx(ours, rel=0.01)
