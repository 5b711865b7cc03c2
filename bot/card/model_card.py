"""Facts -> the model card. It contains only what was measured or read."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import yaml

from bot.card.changes import changelog
from bot.card.memory import serving_memory
from bot.card.model_index import model_index
from bot.card.unquantized import parts_beside_text, unquantized_text
from bot.checkpoint.repo_files import code_left_out, is_terms
from bot.records import Job, JobKind, Provenance, PublishedFile, Signer, Upstream, experts_of_model
from bot.records.licenses import LICENSES, OTHER_LICENSE
from bot.text import escape_markdown, method_text, render

TEMPLATE = "model_card.md.jinja"
_TAGS = ("awq", "int4", "4-bit")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual|code")
_TASK = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_TITLE = re.compile(r"---\n.*?\n---\n\n# [^\n]*\n\n", re.DOTALL)  # with the metadata before it
_MAX_LICENSE_NAME = 100
_MOST_NOTICE = 500  # characters
# The upstream tags that the card repeats; others are arbitrary text.
_KNOWN_UPSTREAM_TAGS = {"conversational", "chat", "code", "math", "reasoning", "multilingual"}


# transformers' class for a kind of model, and the Hub's task: https://huggingface.co/docs/hub/models-tasks
_USUAL_TASKS = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForImageTextToText": "image-text-to-text",
    "AutoModelForMultimodalLM": "any-to-any",
}


# The workflow that publishes, which signs with its own name.
_WORKFLOWS = {JobKind.RELEASE: "model.yml", JobKind.FINISH: "model.yml", JobKind.REFRESH: "watch.yml"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a card says beside its provenance. chat: the model has a chat template, so the example uses it."""

    target: str
    upstream: Upstream
    chat: bool
    signed_by: Signer | None = None
    trust_remote_code: bool = False

    @classmethod
    def of(cls, job: Job, *, chat: bool) -> Origin:
        return cls(
            target=job.entry.target,
            upstream=job.upstream,
            chat=chat,
            signed_by=_signer(job),
            trust_remote_code=job.entry.trust_remote_code,
        )


def render_card(job: Job, provenance: Provenance, *, chat: bool) -> str:
    """README.md of the target. chat: as in Origin.

    Raises jinja2.UndefinedError when the template uses a fact that was not given.
    """
    return render_release(Origin.of(job, chat=chat), provenance)


def render_release(origin: Origin, provenance: Provenance) -> str:
    """The same for a release whose job is not known, as when it is checked."""
    metadata = yaml.safe_dump(_metadata(origin, provenance), sort_keys=False, allow_unicode=True)
    card = f"---\n{metadata}---\n\n{render(TEMPLATE, **_facts(origin, provenance))}"
    return with_notice(card, "", provenance.notice)


def with_notice(card: str, before: str, notice: str) -> str:
    """The card with this notice below its title, in place of the one before; either may be empty.

    Raises ValueError for a card without a title, or without the notice before.
    """
    said, now = _notice(before), _notice(notice)
    title = _TITLE.match(card)
    if title is None or not card.startswith(said, title.end()):
        raise ValueError("the card is not as awq-bot writes it")
    return card[: title.end()] + now + card[title.end() + len(said) :]


def _notice(text: str) -> str:
    return f"> **Notice of the publisher**: {escape_markdown(text, _MOST_NOTICE)}\n\n" if text else ""


def _metadata(origin: Origin, provenance: Provenance) -> dict[str, Any]:
    """Only values that the Hub accepts: it refuses a whole commit for one invalid value.

    Upstream's may be invalid, because a git push is not checked. The keys: https://huggingface.co/docs/hub/model-cards
    """
    upstream, (owner, name) = origin.upstream, origin.target.split("/")
    licenses, license_name = _license_ids(upstream)
    carried = {file.path for file in provenance.files}
    task = upstream.pipeline_tag or ""
    usual_task = _USUAL_TASKS[_auto_class(parts_beside_text(provenance.modules_to_not_convert))]
    metadata = {
        "license": licenses[0] if len(licenses) == 1 else licenses,
        "license_name": license_name,
        "license_link": upstream.license_file if upstream.license_file in carried else upstream.license_url,
        "language": [code for code in upstream.languages if _LANGUAGE.fullmatch(code)],
        "library_name": "transformers",
        "pipeline_tag": task if _TASK.fullmatch(task) else usual_task,
        "base_model": upstream.repo_id,
        "base_model_relation": "quantized",
        "new_version": upstream.new_version,
        "quantized_by": owner,
        "tags": [*_TAGS, *(tag for tag in upstream.tags if tag in _KNOWN_UPSTREAM_TAGS)],
        "model-index": model_index(provenance, name=name),
    }
    return {key: value for key, value in metadata.items() if value}


def _license_ids(upstream: Upstream) -> tuple[list[str], str | None]:
    """license and license_name. Text that is no id of the Hub becomes license_name, which `other` requires.

    See https://huggingface.co/docs/hub/repositories-licenses
    """
    stated, name = [item.lower() for item in upstream.licenses], _slug(upstream.license_name or "")
    unknown = [item for item in stated if item not in LICENSES]
    ids = list(dict.fromkeys(OTHER_LICENSE if item in unknown else item for item in stated))
    if OTHER_LICENSE in ids:
        name = name or _slug(" ".join(unknown)) or OTHER_LICENSE
    return ids, name


def _slug(text: str) -> str | None:
    slug = re.sub(r"[^a-z0-9_.]+", "-", text.lower()).strip("-")
    return slug[:_MAX_LICENSE_NAME].strip("-") or None


def _facts(origin: Origin, provenance: Provenance) -> dict[str, Any]:
    report, upstream = provenance.report, origin.upstream
    experts = experts_of_model(report.experts)
    # Without a list, in a release of version 0.1, only what the recipe left out is known.
    unquantized = provenance.modules_to_not_convert or provenance.recipe.modules_to_not_convert
    beside_text = parts_beside_text(unquantized)
    return {
        "name": origin.target.split("/")[1],
        "target": origin.target,
        "chat": origin.chat,
        "base_model": upstream.repo_id,
        "new_version": upstream.new_version,
        "tag": provenance.tag,
        "source_sha": provenance.source.sha,
        "license": _license(upstream),
        "license_files": tuple(file.path for file in provenance.files if _is_license(file, upstream)),
        "gated": bool(upstream.gated),
        "signed_by": origin.signed_by,
        "own_code": code_left_out(upstream.files, trust_remote_code=origin.trust_remote_code),
        "provenance": provenance,
        "built_by": provenance.built_by,
        "report": report,
        "tried": tuple(served.engine for served in report.served),
        "experts": experts,
        "not_quantized": unquantized_text(unquantized, mixture=experts is not None),
        "beside_text": beside_text,
        "auto_class": _auto_class(beside_text),
        "recipe": provenance.recipe,
        "changelog": changelog(provenance.releases),
        "method": method_text(provenance.recipe.method),
        "calibration": provenance.calibration,
        "perplexity_ratio": report.perplexity_quantized / report.perplexity_source,
        "size_ratio": report.size_source_bytes / report.size_quantized_bytes,
        "tensor_parallel": provenance.tensor_parallel,
        "memory": serving_memory(provenance.kv_cache, weights_bytes=report.size_quantized_bytes),
        "tokens": provenance.calibration.samples * provenance.calibration.seq_len,
    }


def _signer(job: Job) -> Signer | None:
    """With the workflow that signs this release, where any of a repository may."""
    signer = job.entry.signed_by
    return signer and replace(signer, value=signer.value.replace("*", _WORKFLOWS[job.kind]))


def _auto_class(beside_text: tuple[str, ...]) -> str:
    """The class of transformers that loads a model with these parts beside its text decoder."""
    if "vision tower" in beside_text:
        return "AutoModelForImageTextToText"
    return "AutoModelForMultimodalLM" if beside_text else "AutoModelForCausalLM"


def _license(upstream: Upstream) -> str:
    """The licence ids with license_name, because `other` alone says nothing."""
    stated = [text for text in (", ".join(upstream.licenses), upstream.license_name) if text]
    return f"{stated[0]} ({stated[1]})" if len(stated) == 2 else "".join(stated) or "not stated"


def _is_license(file: PublishedFile, upstream: Upstream) -> bool:
    return file.path == upstream.license_file or is_terms(file.path, size_bytes=file.size_bytes)
