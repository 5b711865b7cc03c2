"""Facts -> the model card. Nothing on it that was not measured or read."""

from __future__ import annotations

from typing import Any

import yaml

from bot.records import Job, Provenance, Upstream
from bot.text import render

TEMPLATE = "model_card.md.jinja"
_TAGS = ("awq", "int4", "4-bit")
_LICENSE_FILES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
# What the card says of a repo it has no words of its own for; upstream's tags are anybody's text.
_KNOWN_UPSTREAM_TAGS = {"conversational", "chat", "code", "math", "reasoning", "multilingual"}


def render_card(job: Job, provenance: Provenance, *, chat: bool) -> str:
    """README.md of the target. chat: the model has a chat template, so the example talks to it.

    Raises jinja2.UndefinedError when the template names a fact that is not there.
    """
    body = render(TEMPLATE, **_facts(job, provenance), chat=chat)
    return f"---\n{yaml.safe_dump(_metadata(job), sort_keys=False, allow_unicode=True)}---\n\n{body}"


def _metadata(job: Job) -> dict[str, Any]:
    upstream = job.upstream
    metadata = {
        "license": upstream.license,
        "license_name": upstream.license_name,
        "license_link": upstream.license_link,
        "language": list(upstream.languages),
        "library_name": "transformers",
        "pipeline_tag": upstream.pipeline_tag or "text-generation",
        "base_model": job.entry.repo_id,
        "base_model_relation": "quantized",
        "quantized_by": job.entry.target.split("/")[0],
        "tags": [*_TAGS, *(tag for tag in upstream.tags if tag in _KNOWN_UPSTREAM_TAGS)],
    }
    return {key: value for key, value in metadata.items() if value}


def _facts(job: Job, provenance: Provenance) -> dict[str, Any]:
    report = provenance.report
    return {
        "name": job.entry.target.split("/")[1],
        "target": job.entry.target,
        "base_model": job.entry.repo_id,
        "tag": provenance.tag,
        "source_sha": provenance.source.sha,
        "license": _license(job.upstream),
        "license_files": tuple(file.path for file in provenance.files if file.path.startswith(_LICENSE_FILES)),
        "gated": bool(job.upstream.gated),
        "provenance": provenance,
        "report": report,
        "recipe": provenance.recipe,
        "calibration": provenance.calibration,
        "perplexity_ratio": report.perplexity_quantized / report.perplexity_source,
        "size_ratio": report.size_source_bytes / report.size_quantized_bytes,
        "tensor_parallel": provenance.tensor_parallel,
        "tokens": provenance.calibration.samples * provenance.calibration.seq_len,
    }


def _license(upstream: Upstream) -> str:
    """`other` says nothing by itself; the name beside it does."""
    stated = [text for text in (upstream.license, upstream.license_name) if text]
    return f"{stated[0]} ({stated[1]})" if len(stated) == 2 else "".join(stated) or "not stated"
