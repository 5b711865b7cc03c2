"""Weights: files that are incomplete, of another format, or stored in an unusual way, and values."""

from __future__ import annotations

import json

from tests.bad_input.case import Accepted, Case, Change, Kind, Place, Refused
from tests.bad_input.stored import (
    EMBEDDING,
    FIRST,
    HEAD,
    INDEX,
    NORM,
    SHARDS,
    another,
    config,
    filled,
    same,
    sharded,
    weights,
)
from tests.support.small_sandbox import WEIGHTS

_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:7e4bd9d5e7d1c1ed1ad7b1b8e3e0f2f0a4a5f61ec2b8b4ab5cf3d9a26f2b9a11\nsize 4976698672\n"
)
_BEYOND = "../beside/kept.safetensors"
_UNTIED: dict[str, Change] = {"config.json": config(tie_word_embeddings=False)}


def _planned(name: str, report: str, files: dict[str, Change], right: Refused | Accepted) -> Case:
    return Case(name=name, report=report, kind=Kind.WEIGHTS, place=Place.PLAN, files=files, right=right)


_TIED = (
    _planned(
        "tied-but-another-head-is-stored",
        "transformers#38870",
        {WEIGHTS: weights({HEAD: another(EMBEDDING)})},
        Accepted(says=(HEAD, EMBEDDING, "differ")),
    ),
    _planned(
        "tied-and-the-same-head-is-stored",
        "mlx-lm#722",
        {WEIGHTS: weights({HEAD: same(EMBEDDING)})},
        Accepted(never=("differ",)),
    ),
    _planned(
        "tied-and-only-the-head-is-stored",
        "onnxruntime-genai#1089",
        {WEIGHTS: weights({HEAD: same(EMBEDDING)}, without=(EMBEDDING,))},
        Accepted(),
    ),
    _planned("untied-without-a-head", "transformers#43429", _UNTIED, Refused(3, names=HEAD, says=("missing",))),
)

_FILES = (
    _planned(
        "index-with-an-entry-that-no-shard-has",
        "huggingface_hub#4728",
        sharded(index=lambda found: found | {"mtp.fc.weight": found[NORM]}),
        Accepted(),
    ),
    _planned("shards-in-a-subfolder", "", sharded(folder="weights/"), Accepted()),
    _planned(
        "index-that-names-a-shard-that-is-not-there",
        "sglang#32279",
        sharded(index=lambda found: found | {HEAD: "model-00003-of-00002.safetensors"}),
        Refused(3, names="model-00003-of-00002.safetensors", says=("incomplete",)),
    ),
    _planned(
        "index-of-another-number-of-shards",
        "mlx-serve#465",
        sharded(
            index=lambda found: {
                name: f"model-0000{n % 5 + 1}-of-00005.safetensors" for n, name in enumerate(found)
            }
        ),
        Refused(3, names="-of-00005.safetensors", says=("incomplete",)),
    ),
    _planned(
        "index-that-leaves-the-folder",
        "",
        sharded(index=lambda found: found | {NORM: _BEYOND}),
        Refused(3, names=INDEX, says=("kept.safetensors",)),
    ),
    _planned(
        "index-without-a-weight-map",
        "",
        sharded() | {INDEX: json.dumps({"metadata": {}})},
        Refused(3, names=INDEX, says=("weight_map",)),
    ),
    _planned("index-that-is-cut-off", "", sharded() | {INDEX: '{"weight_map": {"model'}, Refused(3, names=INDEX)),
    _planned(
        "index-beside-a-single-file",
        "mlx-vlm#1464",
        sharded(index=lambda found: dict.fromkeys(found, SHARDS[0]), keep_single=True),
        Accepted(),
    ),
    _planned(
        "a-second-copy-in-another-format",
        "vllm#5005",
        sharded() | {"consolidated.safetensors": weights()},
        Accepted(),
    ),
    _planned(
        "only-the-copy-in-another-format",
        "huggingface_hub#3645",
        {WEIGHTS: None, "consolidated.safetensors": weights()},
        Refused(3, names="consolidated.safetensors"),
    ),
    _planned(
        "git-lfs-pointer-instead-of-the-weights",
        "transformers#27923",
        {WEIGHTS: _POINTER},
        Refused(3, names=WEIGHTS, says=("lfs pointer",), never=("header claims",)),
    ),
    _planned(
        "gguf-alone",
        "",
        {WEIGHTS: None, "small.Q4_K_M.gguf": b"GGUF\3\0\0\0"},
        Refused(4, names="GGUF", never=("The next run",)),
    ),
    _planned(
        "adapter-alone",
        "transformers#30513",
        {
            WEIGHTS: None,
            "config.json": None,
            "adapter_config.json": json.dumps({"peft_type": "LORA", "base_model_name_or_path": "lab/base"}),
            "adapter_model.safetensors": weights(),
        },
        Refused(4, names="LoRA adapter"),
    ),
    _planned("empty-file", "", {WEIGHTS: b""}, Refused(3, names=WEIGHTS)),
)

_PULLED = (
    Case(
        name="a-second-copy-in-another-format",
        report="vllm#40765",
        kind=Kind.WEIGHTS,
        place=Place.PULL,
        files=sharded() | {"consolidated.safetensors": weights()},
        right=Accepted(says=SHARDS, never=("consolidated",)),
    ),
)

_BUILT = (
    Case(
        name="tied-but-another-head-is-stored",
        report="transformers#38870",
        kind=Kind.WEIGHTS,
        place=Place.SKELETON,
        files={WEIGHTS: weights({HEAD: another(EMBEDDING)})},
        right=Accepted(says=(f"the output head is {HEAD}",), never=(EMBEDDING,)),
    ),
    Case(
        name="tied-and-only-the-head-is-stored",
        report="onnxruntime-genai#1089",
        kind=Kind.WEIGHTS,
        place=Place.SKELETON,
        files={WEIGHTS: weights({HEAD: same(EMBEDDING)}, without=(EMBEDDING,))},
        right=Accepted(says=(f"the output head is {HEAD}",)),
    ),
    Case(
        name="index-with-an-entry-that-no-shard-has",
        report="huggingface_hub#4728",
        kind=Kind.WEIGHTS,
        place=Place.SKELETON,
        files=sharded(index=lambda found: found | {"mtp.fc.weight": found[NORM]}),
        right=Accepted(),
    ),
    Case(
        name="shards-in-a-subfolder",
        kind=Kind.WEIGHTS,
        place=Place.SKELETON,
        files=sharded(folder="weights/"),
        right=Accepted(),
    ),
    Case(
        name="index-that-leaves-the-folder",
        kind=Kind.WEIGHTS,
        place=Place.SKELETON,
        files=sharded(index=lambda found: found | {NORM: _BEYOND}),
        right=Refused(3, names=INDEX, says=("kept.safetensors",)),
    ),
)

_RUN = (
    Case(
        name="a-linear-that-is-not-a-number",
        report="AutoAWQ#498",
        kind=Kind.WEIGHTS,
        place=Place.LAYERS,
        files={WEIGHTS: weights({FIRST: filled(FIRST, float("nan"))})},
        right=Refused(5, names="layer 0", says=("mlp.down_proj", "NaN")),
    ),
    Case(
        name="a-norm-that-is-infinite",
        report="llm-compressor#1771",
        kind=Kind.WEIGHTS,
        place=Place.LAYERS,
        files={
            WEIGHTS: weights(
                {
                    "model.layers.1.input_layernorm.weight": filled(
                        "model.layers.1.input_layernorm.weight", float("inf")
                    )
                }
            )
        },
        right=Refused(5, names="layer 1"),
    ),
    Case(
        name="a-linear-of-zeros",
        kind=Kind.WEIGHTS,
        place=Place.LAYERS,
        files={WEIGHTS: weights({FIRST: filled(FIRST, 0.0)})},
        right=Accepted(says=("14 linears",)),
    ),
    Case(
        name="tied-but-another-head-is-stored",
        report="transformers#38870",
        kind=Kind.WEIGHTS,
        place=Place.EVALUATION,
        files={WEIGHTS: weights({HEAD: another(EMBEDDING)})},
        right=Accepted(says=("perplexity as transformers",)),
    ),
    Case(
        name="a-last-norm-that-is-not-a-number",
        kind=Kind.WEIGHTS,
        place=Place.LAYERS,
        files={WEIGHTS: weights({NORM: filled(NORM, float("nan"))})},
        right=Refused(5, names=NORM, says=("finite",)),
    ),
    Case(
        name="names-of-modules-that-are-markup",
        kind=Kind.WEIGHTS,
        place=Place.CARD,
        card={"modules": ("vision.<img src=x onerror=alert(1)>", "model.layers.0.`rm -rf`\n# Heading")},
        right=Accepted(never=("<img src=x", "<h1>Heading")),
    ),
)

CASES: tuple[Case, ...] = (
    *_TIED,
    *_FILES,
    *_PULLED,
    *_BUILT,
    *_RUN,
)
