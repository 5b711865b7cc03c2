"""config.json: damaged, values of the wrong type or out of range, or other than the weights say."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

from tests.bad_input.case import Accepted, Case, Change, Kind, Place, Refused
from tests.bad_input.stored import config, repeated_key
from tests.support import tiny_models
from tests.support.small_sandbox import CONFIG, WEIGHTS

_CONFIG = "config.json"
_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def _planned(name: str, report: str, right: Refused | Accepted, content: Change, *, alone: bool = False) -> Case:
    files = {_CONFIG: content}
    return Case(
        name=name, report=report, kind=Kind.CONFIG, place=Place.PLAN, files=files, right=right, alone=alone
    )


def _wrong(*says: str, exit_code: int = 4) -> Refused:
    return Refused(exit_code, names=_CONFIG, says=says, never=("tokenizer",))


@cache
def _short_model() -> dict[str, bytes]:
    """A model of a type that learns 128 positions, for the small model's tokenizer."""
    with tempfile.TemporaryDirectory() as name:
        folder = tiny_models.build("opt", Path(name), vocab_size=2048, max_position_embeddings=128)
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in (_CONFIG, WEIGHTS)}


_VALUES = (
    _planned("hidden-size-is-text", "", _wrong("hidden_size"), config(hidden_size="128")),
    _planned("hidden-size-is-a-fraction", "", _wrong("hidden_size"), config(hidden_size=128.5)),
    _planned("no-attention-heads", "", _wrong("num_attention_heads"), config(num_attention_heads=0)),
    _planned(
        "key-heads-that-do-not-divide",
        "",
        Refused(3, names=_CONFIG, says=("k_proj",)),
        config(num_key_value_heads=3),
    ),
    _planned(
        "padding-token-beyond-the-vocabulary",
        "transformers#3108",
        _wrong("pad_token_id"),
        config(pad_token_id=32_003),
    ),
    _planned("padding-token-below-zero", "transformers#25773", Accepted(), config(pad_token_id=-1)),
    _planned(
        "a-billion-layers", "", _wrong("num_hidden_layers"), config(num_hidden_layers=1_000_000_000), alone=True
    ),
    _planned("a-vocabulary-of-a-trillion", "", _wrong("vocab_size"), config(vocab_size=10**12), alone=True),
    _planned(
        "unknown-kind-of-rope",
        "",
        Refused(4, names=_CONFIG, says=("'su'",)),
        config(rope_scaling={"type": "su", "factor": 4.0}),
    ),
    _planned(
        "two-kinds-of-rope",
        "vllm#6692",
        Accepted(),
        config(rope_scaling={"rope_type": "llama3", "type": "yarn", **_ROPE}),
    ),
    _planned("rope-is-a-list", "", Refused(4, names=_CONFIG), config(rope_scaling=[1, 2])),
    _planned(
        "head-size-is-null", "sglang#7788", Refused(4, names=_CONFIG, says=("head_dim",)), config(head_dim=None)
    ),
    _planned("several-end-tokens", "vllm#5954", Accepted(), config(eos_token_id=[2042, 2040])),
    _planned(
        "no-end-token", "text-generation-inference#1791", Accepted(), config(eos_token_id=None, bos_token_id=None)
    ),
    _planned("forward-returns-tuples", "", Accepted(), config(return_dict=False)),
    _planned(
        "states-and-attentions-are-returned",
        "",
        Accepted(),
        config(output_hidden_states=True, output_attentions=True),
    ),
    _planned("another-dtype-than-the-weights", "transformers#24976", Accepted(), config(torch_dtype="float32")),
    _planned("dtype-is-no-dtype", "", Refused(4, names=_CONFIG, says=("float12",)), config(torch_dtype="float12")),
    _planned("both-keys-for-the-dtype", "", Accepted(), config(dtype="float16")),
    _planned("unknown-activation", "", Refused(4, names=_CONFIG, says=("swoosh",)), config(hidden_act="swoosh")),
)

_KINDS = (
    _planned(
        "unknown-type",
        "GPTQModel#2920",
        Refused(4, names="model_type", says=("'crowd_unified'",)),
        config(model_type="crowd_unified", architectures=["CrowdUnifiedForCausalLM"]),
    ),
    _planned("type-is-a-list", "", Refused(4, names="model_type"), config(model_type=["qwen3"])),
    _planned("no-type", "", Refused(4, names="model_type"), config(without=("model_type",))),
    _planned(
        "a-model-that-fills-gaps",
        "transformers#33497",
        Refused(4, names="Qwen3ForMaskedLM", says=("causal",)),
        config(architectures=["Qwen3ForMaskedLM"]),
    ),
    _planned(
        "a-class-name-with-escape-sequences",
        "",
        Refused(4, names="causal"),
        config(architectures=["\x1b[2J\n::error::ForNothing\u202e"]),
    ),
    _planned("no-class-named", "hqq#47", Accepted(), config(architectures=None)),
    _planned(
        "quantized-without-a-method",
        "vllm#1912",
        Refused(4, names="quantized already"),
        config(quantization_config={"bits": 4, "group_size": 128}),
    ),
    _planned("quantization-is-null", "", Accepted(), config(quantization_config=None)),
    _planned(
        "quantization-method-with-escape-sequences",
        "",
        Refused(4, names="quantized already"),
        config(quantization_config={"quant_method": "\x1b[31mgptq\n::warning::"}),
    ),
    _planned(
        "code-of-its-own",
        "",
        Refused(4, names="model_type", says=("trust_remote_code",)),
        config(model_type="crowd", auto_map={"AutoModelForCausalLM": "modeling_crowd.CrowdForCausalLM"}),
    ),
)

_TEXT = (
    _planned("not-there", "mlx-examples#1033", Refused(3, names=_CONFIG), None),
    _planned("empty", "OmniParser#130", Refused(3, names=_CONFIG), ""),
    _planned("a-comma-too-many", "", Refused(3, names=_CONFIG), config().removesuffix("}") + ",}"),
    _planned("byte-order-mark", "", Refused(3, names=_CONFIG), "\ufeff" + config()),
    _planned("not-utf-8", "", Refused(3, names=_CONFIG), config().encode("utf-16")),
    _planned(
        "a-key-twice",
        "",
        Refused(3, names=_CONFIG, says=("hidden_size",)),
        repeated_key(config(), "hidden_size", 128),
    ),
    _planned(
        "infinity",
        "transformers#42959",
        Accepted(),
        json.dumps(CONFIG | {"time_step_limit": [0.0, float("inf")]}),
    ),
    _planned("nested-too-deeply", "", Refused(3, names=_CONFIG), '{"a":' * 100_000),
    _planned(
        "git-lfs-pointer",
        "",
        Refused(3, names=_CONFIG),
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 700\n",
    ),
)

_READ = (
    Case(
        name="hidden-size-is-text",
        kind=Kind.CONFIG,
        place=Place.TOKENIZER,
        files={_CONFIG: config(hidden_size="128")},
        right=Refused(4, names=_CONFIG, says=("hidden_size",), never=("tokenizer.json",)),
    ),
    Case(
        name="unknown-type",
        kind=Kind.CONFIG,
        place=Place.TOKENIZER,
        files={_CONFIG: config(model_type="crowd_unified")},
        right=Refused(4, names=_CONFIG, says=("crowd_unified",), never=("tokenizer.json",)),
    ),
    Case(
        name="a-billion-layers",
        kind=Kind.CONFIG,
        place=Place.SKELETON,
        files={_CONFIG: config(num_hidden_layers=1_000_000_000)},
        right=Refused(4, names=_CONFIG, says=("num_hidden_layers",)),
    ),
    Case(
        name="head-size-is-null",
        report="sglang#7788",
        kind=Kind.CONFIG,
        place=Place.SKELETON,
        files={_CONFIG: config(head_dim=None)},
        right=Refused(4, names=_CONFIG, says=("head_dim",)),
    ),
    Case(
        name="forward-returns-tuples",
        kind=Kind.CONFIG,
        place=Place.LAYERS,
        files={_CONFIG: config(return_dict=False)},
        right=Accepted(says=("14 linears",)),
    ),
    Case(
        name="states-and-attentions-are-returned",
        kind=Kind.CONFIG,
        place=Place.LAYERS,
        files={_CONFIG: config(output_hidden_states=True, output_attentions=True)},
        right=Accepted(says=("14 linears",)),
    ),
    Case(
        name="forward-returns-tuples",
        kind=Kind.CONFIG,
        place=Place.EVALUATION,
        files={_CONFIG: config(return_dict=False)},
        right=Accepted(says=("perplexity as transformers",)),
    ),
    Case(
        name="fewer-positions-than-a-block",
        kind=Kind.CONFIG,
        place=Place.EVALUATION,
        files={_CONFIG: lambda: _short_model()[_CONFIG], WEIGHTS: lambda: _short_model()[WEIGHTS]},
        right=Accepted(says=("perplexity as transformers",)),
    ),
)

CASES: tuple[Case, ...] = (*_VALUES, *_KINDS, *_TEXT, *_READ)
