"""Records with sensible contents, so that a test writes down only what it is about.

Every factory takes the record's own fields by keyword. By default they fit each other: `provenance()` was made
from `upstream()` for `entry()`, and `published()` is complete.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from bot.records import (
    CARD_VERSION,
    Calibration,
    CalibrationSet,
    Details,
    Digests,
    DiscoverRule,
    Estimate,
    ExpertTokens,
    HubFile,
    Job,
    JobKind,
    ListedRepo,
    ModuleError,
    Provenance,
    Published,
    PublishedFile,
    QuantizedModel,
    Recipe,
    Report,
    SourceCount,
    SourceFigures,
    SourceProvenance,
    Tag,
    TargetState,
    TaskFigures,
    TensorInfo,
    Upstream,
    WatchEntry,
    Weights,
    WorkflowRun,
)
from bot.watch.digests import files_digest, recipe_digest, refresh_digest, refresh_files, source_files, tag_name

SHA = "0123456789abcdef0123456789abcdef01234567"
OTHER_SHA = "fedcba9876543210fedcba9876543210fedcba98"
HEAD = "aaaabbbbccccddddeeeeffff0000111122223333"
WEIGHT_FILES = ("model.safetensors",)
VERSIONS = {"torch": "2.13.0", "transformers": "5.23.0", "autoawq": "0.2.9"}

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 2048,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def hub_file(path: str, content: str | None = None) -> HubFile:
    """A file whose hash follows from its content, which is its path if nothing else is given."""
    text = path if content is None else content
    digest = hashlib.sha256(text.encode()).hexdigest()
    return HubFile(path=path, size_bytes=len(text), content_hash=digest)


def entry(**fields: Any) -> WatchEntry:
    standard: dict[str, Any] = {
        "repo_id": "lab/Tiny",
        "target": "quantized/Tiny-awq",
        "calibration": Calibration(samples=16, seq_len=256),
        "line": 3,
    }
    return WatchEntry(**standard | fields)


def rule(**fields: Any) -> DiscoverRule:
    """line: of the rule."""
    found = entry(repo_id="", target="", found=True, line=fields.pop("line", 9))
    standard: dict[str, Any] = {"author": "lab", "publish_to": "quantized", "entry": found}
    return DiscoverRule(**standard | fields)


def listed(repo_id: str = "lab/New", **fields: Any) -> ListedRepo:
    """A repo that a rule without filters takes."""
    standard: dict[str, Any] = {
        "created": "2026-11-20T08:00:00Z",
        "downloads": 1000,
        "parameters": 8_200_000_000,
        "architectures": ("Qwen3ForCausalLM",),
        "model_type": "qwen3",
        "library": "transformers",
        "tags": ("transformers", "safetensors", "license:mit"),
    }
    return ListedRepo(repo_id=repo_id, **standard | fields)


UPSTREAM_FILES = (
    hub_file("README.md"),
    hub_file("LICENSE"),
    hub_file("chat_template.jinja"),
    hub_file("config.json"),
    hub_file("generation_config.json"),
    hub_file("model.safetensors"),
    hub_file("tokenizer.json"),
    hub_file("tokenizer_config.json"),
)


def upstream(**fields: Any) -> Upstream:
    """license: of a repo that states one, or None for none."""
    if "license" in fields:
        stated = fields.pop("license")
        fields["licenses"] = (stated,) if stated else ()
    standard: dict[str, Any] = {
        "repo_id": "lab/Tiny",
        "sha": SHA,
        "files": UPSTREAM_FILES,
        "licenses": ("apache-2.0",),
        "languages": ("en",),
        "pipeline_tag": "text-generation",
    }
    return Upstream(**standard | fields)


def with_file(source: Upstream, path: str, content: str) -> Upstream:
    """The same repo after a commit that added or changed one file."""
    return replace(without_file(source, path), files=(*without_file(source, path).files, hub_file(path, content)))


def without_file(source: Upstream, path: str) -> Upstream:
    """The same repo after a commit that deleted one file."""
    return replace(source, sha=OTHER_SHA, files=tuple(file for file in source.files if file.path != path))


def layer_tensors(config: dict[str, Any] = CONFIG) -> tuple[TensorInfo, ...]:
    """The safetensors header of a Qwen3 of these sizes, computed from its published architecture."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    per_layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    outside = {"model.embed_tokens": (config["vocab_size"], hidden), "model.norm": (hidden,)}
    if not config["tie_word_embeddings"]:
        outside["lm_head"] = (config["vocab_size"], hidden)
    layers = {
        f"model.layers.{number}.{name}": shape
        for number in range(config["num_hidden_layers"])
        for name, shape in per_layer.items()
    }
    return tuple(
        TensorInfo(name=f"{name}.weight", dtype="BF16", shape=shape) for name, shape in (outside | layers).items()
    )


def details(**fields: Any) -> Details:
    """What is read of a new release."""
    standard: dict[str, Any] = {"config": CONFIG, "weight_files": WEIGHT_FILES, "tensors": layer_tensors()}
    return Details(**standard | fields)


def digests(asked: WatchEntry | None = None, source: Upstream | None = None) -> Digests:
    asked, source = asked or entry(), source or upstream()
    return Digests(
        source=files_digest(source_files(asked, source, WEIGHT_FILES)),
        refresh=refresh_digest(source),
        recipe=recipe_digest(asked),
    )


def calibration_set(**fields: Any) -> CalibrationSet:
    standard: dict[str, Any] = {
        "samples": 16,
        "seq_len": 256,
        "seed": 0,
        "sha256": "5e" * 32,
        "sources": (SourceCount(label="builtin:stdlib", documents=12, tokens=4096, share=1.0, languages=("en",)),),
        "distinct_token_share": 0.25,
    }
    return CalibrationSet(**standard | fields)


def expert_tokens(layer: int = 0, **fields: Any) -> ExpertTokens:
    standard: dict[str, Any] = {"layer": layer, "experts": 128, "lowest": 12, "median": 4096.0, "unseen": 0}
    return ExpertTokens(**standard | fields)


def source_figures(label: str, **fields: Any) -> SourceFigures:
    standard: dict[str, Any] = {
        "predictions": 16_352,
        "perplexity_source": 16.0,
        "perplexity_quantized": 16.4,
        "kl_mean": 0.0123,
        "top1_agreement": 0.9345,
    }
    return SourceFigures(label=label, **standard | fields)


def task_figures(task: str = "arc_easy", **fields: Any) -> TaskFigures:
    standard: dict[str, Any] = {
        "metric": "acc",
        "higher_is_better": True,
        "examples": 500,
        "source": 0.75,
        "source_stderr": 0.0194,
        "quantized": 0.72,
        "quantized_stderr": 0.0201,
        "requests_sha256": "9e" * 32,
    }
    return TaskFigures(task=task, **standard | fields)


def report(**fields: Any) -> Report:
    standard: dict[str, Any] = {
        "perplexity_source": 16.0,
        "perplexity_quantized": 16.4,
        "kl_mean": 0.0123,
        "kl_p99": 0.2345,
        "top1_agreement": 0.9345,
        "bits_per_weight": 4.156,
        "bits_per_weight_file": 5.25,
        "size_source_bytes": 8_000_000_000,
        "size_quantized_bytes": 2_500_000_000,
        "tokens": 32_768,
        "text_label": "builtin:stdlib (test split)",
        "text_sha256": "7e" * 32,
        "versions": VERSIONS,
        "pictures": ("assets/error-by-layer.png",),
        "duration_s": 12.5,
    }
    return Report(**standard | fields)


def published_file(path: str, size_bytes: int = 100) -> PublishedFile:
    return PublishedFile(path=path, size_bytes=size_bytes, sha256=hashlib.sha256(path.encode()).hexdigest())


def weights(**fields: Any) -> Weights:
    files = tuple(published_file(file.path) for file in UPSTREAM_FILES if file.path != "README.md")
    standard: dict[str, Any] = {"folder": "source", "sha": SHA, "files": files, "duration_s": 3.5}
    return Weights(**standard | fields)


def quantized(**fields: Any) -> QuantizedModel:
    modules = tuple(
        ModuleError(layer=layer, module=name, relative_error=0.01, relative_error_rounding=0.02, ratio=0.5)
        for layer in range(2)
        for name in ("self_attn.q_proj", "mlp.down_proj")
    )
    standard: dict[str, Any] = {
        "folder": "quantized",
        "files": tuple(published_file(path) for path in ("config.json", "model.safetensors", "tokenizer.json")),
        "recipe": Recipe(),
        "calibration": calibration_set(),
        "artifact_dtype": "float16",
        "modules_to_not_convert": (),
        "modules": modules,
        "quantized_parameters": 1_000_000,
        "bits_per_weight": 4.156,
        "bits_per_weight_file": 5.25,
        "versions": VERSIONS,
        "device": "cpu",
        "duration_s": 99.5,
    }
    return QuantizedModel(**standard | fields)


def source_provenance(asked: WatchEntry | None = None, source: Upstream | None = None) -> SourceProvenance:
    asked, source = asked or entry(), source or upstream()
    made_of = digests(asked, source)
    return SourceProvenance(
        repo_id=source.repo_id,
        revision=asked.revision,
        sha=source.sha,
        gated=source.gated,
        source_files=source_files(asked, source, WEIGHT_FILES),
        refresh_files=refresh_files(source),
        source_digest=made_of.source,
        refresh_digest=made_of.refresh,
    )


def workflow_run(**fields: Any) -> WorkflowRun:
    standard: dict[str, Any] = {
        "repository": "someone/bot",
        "run_id": 7001,
        "attempt": 2,
        "workflow_ref": "someone/bot/.github/workflows/watch.yml@refs/heads/main",
        "sha": "ab" * 20,
        "url": "https://github.com/someone/bot/actions/runs/7001/attempts/2",
    }
    return WorkflowRun(**standard | fields)


def provenance(asked: WatchEntry | None = None, source: Upstream | None = None, /, **fields: Any) -> Provenance:
    """What a release of `source`, as `asked` wants it, leaves on the Hub."""
    asked, source = asked or entry(), source or upstream()
    made_of = digests(asked, source)
    standard: dict[str, Any] = {
        "tool": "awq-bot 0.1.0",
        "quantizer": 1,
        "tag": tag_name(source, made_of),
        "source": source_provenance(asked, source),
        "recipe_digest": made_of.recipe,
        "recipe": asked.recipe,
        "calibration_asked": asked.calibration,
        "calibration": calibration_set(),
        "card": CARD_VERSION,
        "report": report(duration_s=0.0),
        "artifact_dtype": "float16",
        "tensor_parallel": (1, 2),
        "device": "cpu",
        "versions": VERSIONS,
        "files": tuple(published_file(path) for path in ("README.md", "config.json", "model.safetensors")),
    }
    return Provenance(**standard | fields)


def published(made: Provenance | None = None, **fields: Any) -> Published:
    """A complete target that carries `made`."""
    made = made or provenance()
    standard: dict[str, Any] = {
        "repo_id": "quantized/Tiny-awq",
        "state": TargetState.OURS,
        "head": HEAD,
        "tags": (Tag(name=made.tag, sha=HEAD),),
        "provenance": made,
    }
    return Published(**standard | fields)


def absent(**fields: Any) -> Published:
    """A target that is not there yet, or in another state without our provenance."""
    standard: dict[str, Any] = {"repo_id": "quantized/Tiny-awq", "state": TargetState.ABSENT}
    return Published(**standard | fields)


def needs(**fields: Any) -> Estimate:
    standard: dict[str, Any] = {
        "download_bytes": 8_000_000_000,
        "output_bytes": 2_500_000_000,
        "vram_bytes": 6 * 2**30,
        "ram_bytes": 20 * 2**30,
        "disk_bytes": 15_000_000_000,
        "duration_s": 600.0,
        "parameters": 4_000_000_000,
    }
    return Estimate(**standard | fields)


def job(asked: WatchEntry | None = None, source: Upstream | None = None, **fields: Any) -> Job:
    """A release job for `asked`, pinned to `source`."""
    asked, source = asked or entry(), source or upstream()
    made_of = digests(asked, source)
    standard: dict[str, Any] = {
        "job_id": f"{asked.target.replace('/', '--')}-{source.sha[:8]}-{made_of.content[:8]}",
        "kind": JobKind.RELEASE,
        "reason": "first release",
        "entry": asked,
        "upstream": source,
        "digests": made_of,
        "tag": tag_name(source, made_of),
        "source_files": source_files(asked, source, WEIGHT_FILES),
        "refresh_files": refresh_files(source),
        "weight_files": WEIGHT_FILES,
        "estimate": needs(),
        "tensor_parallel": (1, 2),
    }
    return Job(**standard | fields)
