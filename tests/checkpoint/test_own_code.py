"""Models that transformers knows, in repos with Python files: whoever loads the artifact needs none of these."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoImageProcessor, AutoModelForCausalLM, AutoTokenizer

from bot.checkpoint.config import artifact_config
from bot.checkpoint.repo_files import carry_small_files
from bot.records import Recipe

ASSET = Path(__file__).parents[1] / "assets" / "qwen3-tiny"
OWN = {
    "config.json": {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.X"},
    "tokenizer_config.json": {"AutoTokenizer": ["tokenization_x.X", None]},
    "preprocessor_config.json": {"AutoImageProcessor": "image_processing_x.X"},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "source"
    shutil.copytree(ASSET, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    (folder / "modeling_x.py").write_text("raise RuntimeError('ran')")
    for path, classes in OWN.items():
        config = json.loads((folder / path).read_bytes())
        (folder / path).write_text(json.dumps(config | {"auto_map": classes}, indent=2))
    return folder


@pytest.fixture(scope="module")
def artifact(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    carry_small_files(source, folder, trust_remote_code=False)
    config = artifact_config(
        (source / "config.json").read_bytes(),
        recipe=Recipe(),
        modules_to_not_convert=(),
        artifact_dtype="float16",
        trust_remote_code=False,
    )
    (folder / "config.json").write_bytes(config)
    return folder


def names_of_classes(folder: Path, **options: Any) -> list[str]:
    config = AutoConfig.from_pretrained(folder, **options)
    loaded = (
        config,
        AutoModelForCausalLM.from_config(config, **options),
        AutoTokenizer.from_pretrained(folder, **options),
        AutoImageProcessor.from_pretrained(folder, **options),
    )
    return [type(item).__name__ for item in loaded]


def test_the_artifact_loads_whether_or_not_its_code_is_trusted(source: Path, artifact: Path) -> None:
    native = names_of_classes(source)
    for options in ({}, {"trust_remote_code": False}, {"trust_remote_code": True}):
        assert names_of_classes(artifact, **options) == native


@pytest.mark.parametrize("path", OWN)
def test_with_bytes_as_upstream_has_them_it_would_not(
    source: Path, artifact: Path, path: str, tmp_path: Path
) -> None:
    shutil.copytree(artifact, tmp_path, dirs_exist_ok=True)
    shutil.copy(source / path, tmp_path / path)
    with pytest.raises(OSError, match=r"does not appear to have a file named \w+_x\.py"):
        names_of_classes(tmp_path, trust_remote_code=True)
