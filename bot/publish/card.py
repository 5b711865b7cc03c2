"""Facts -> the model card. Nothing on it that was not measured or read."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bot.records import Job, Provenance, Upstream

TEMPLATE = "model_card.md.jinja"
_TAGS = ("awq", "int4", "4-bit")
_LICENSE_FILES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
_LONGEST_TEXT = 200  # characters of somebody else's on a card
# What the card says of a repo it has no words of its own for; upstream's tags are anybody's text.
_KNOWN_UPSTREAM_TAGS = {"conversational", "chat", "code", "math", "reasoning", "multilingual"}

# What Markdown, HTML and TeX read; and what makes an address a link: `https://` its colon, `www.` its dot, and
# `a@b.c` its at.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|#!&~$]|:(?=//)|(?<=www)\.|@(?=[^\s@]*\.))", re.IGNORECASE)


def render_card(job: Job, provenance: Provenance, *, chat: bool) -> str:
    """README.md of the target. chat: the model has a chat template, so the example talks to it.

    Raises jinja2.UndefinedError when the template names a fact that is not there.
    """
    body = _environment().get_template(TEMPLATE).render(**_facts(job, provenance), chat=chat)
    return f"---\n{yaml.safe_dump(_metadata(job), sort_keys=False, allow_unicode=True)}---\n\n{body}"


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(_template_folder()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(gib=_gib, percent=_percent, plain=_plain, rounded=_rounded)
    return environment


def _template_folder() -> Path:
    """templates/ beside the package in a checkout, inside it once installed."""
    package = Path(str(resources.files("bot")))
    inside = package / "templates"
    return inside if inside.is_dir() else package.parent / "templates"


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


# --- filters ------------------------------------------------------------------------------------------------


def _gib(size_bytes: int) -> str:
    gib = size_bytes / 2**30
    return f"{gib:.2f} GiB" if gib >= 0.1 else f"{size_bytes / 2**20:.2f} MiB"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _rounded(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}"


def _plain(text: object) -> str:
    """Text from elsewhere on one line, unable to be markup or a link."""
    line = "".join(char for char in " ".join(str(text).split()) if char.isprintable())
    shown = line if len(line) <= _LONGEST_TEXT else f"{line[: _LONGEST_TEXT - 1]}…"
    return _MARKUP.sub(r"\\\1", shown)
