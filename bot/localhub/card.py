"""The YAML metadata of a README, and the checks that the Hub makes before it accepts one.

https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

from bot.records.licenses import LICENSES

BASE_MODEL_RELATIONS = frozenset({"adapter", "finetune", "merge", "quantized"})

PIPELINE_TAGS = frozenset(
    """
    text-classification token-classification table-question-answering question-answering
    zero-shot-classification translation summarization feature-extraction text-generation fill-mask
    sentence-similarity text-to-speech text-to-audio automatic-speech-recognition audio-to-audio
    audio-classification audio-text-to-text voice-activity-detection depth-estimation image-classification
    object-detection image-segmentation text-to-image image-to-text image-to-image image-to-video
    unconditional-image-generation video-classification reinforcement-learning robotics
    tabular-classification tabular-regression tabular-to-text table-to-text multiple-choice text-ranking
    text-retrieval time-series-forecasting text-to-video image-text-to-text image-text-to-image
    image-text-to-video visual-question-answering document-question-answering zero-shot-image-classification
    graph-ml mask-generation zero-shot-object-detection text-to-3d image-to-3d image-feature-extraction
    video-text-to-text keypoint-detection visual-document-retrieval any-to-any video-to-video other
    """.split()  # noqa: SIM905 - a hundred quoted words would hide the list
)


_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(?:(.*?)\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
REPO_ID = re.compile(r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}", re.ASCII)
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*")
_OTHER_LANGUAGES = frozenset({"multilingual", "code", "other"})


class CardError(ValueError):
    """The metadata cannot be read as a mapping."""


class _Yaml12Loader(yaml.SafeLoader):
    """YAML 1.2, as the Hub reads it: `no` is a language, and a date is text."""


_Yaml12Loader.yaml_implicit_resolvers = {
    first: [
        (tag, regex)
        for tag, regex in resolvers
        if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def front_matter(readme: str) -> dict[str, Any] | None:
    """The metadata, or None without any; raises CardError."""
    match = _FRONT_MATTER.match(readme.removeprefix("\ufeff"))
    if match is None:
        return None
    try:
        content = yaml.load(match.group(1) or "", Loader=_Yaml12Loader)  # noqa: S506 - derived from SafeLoader
    except yaml.YAMLError as error:
        raise CardError(f"invalid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return None
    if not isinstance(content, dict):
        raise CardError("the metadata must be a mapping of keys to values")
    return content


def body(readme: str) -> str:
    """The Markdown below the metadata."""
    readme = readme.removeprefix("\ufeff")
    match = _FRONT_MATTER.match(readme)
    return readme if match is None else readme[match.end() :]


def check_card(readme: str) -> tuple[list[str], list[str]]:
    """(errors, warnings) as `POST /api/validate-yaml` gives them."""
    try:
        metadata = front_matter(readme)
    except CardError as error:
        return [str(error)], []
    if not metadata:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = [
        f'"{key}" {problem}'
        for key, check in _CHECKS.items()
        if key in metadata
        for problem in check(metadata[key], metadata)
    ]
    return errors, []


def strings(value: object) -> list[str]:
    """The strings in a value or a list, as most keys of a card take either."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str)]


def _check_license(value: object, metadata: Mapping[str, Any]) -> Iterator[str]:
    values = value if isinstance(value, list) else [value]
    for item in values:
        if not isinstance(item, str) or item not in LICENSES:
            yield f"must be one of the Hub's licence identifiers, not {item!r}"
    if "other" in values and "license_name" not in metadata and "license_link" not in metadata:
        yield 'is "other", so "license_name" or "license_link" is needed'


def _check_license_name(value: object, _: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9_.-]+", value):
        yield "must be lower case letters, digits, dots and dashes"


def _check_base_model(value: object, _: Mapping[str, Any]) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, str) or not REPO_ID.fullmatch(item):
            yield f"with value {item!r} is not valid. Use a model id from https://hf.co/models."


def _check_relation(value: object, metadata: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(value, str) or value not in BASE_MODEL_RELATIONS:
        yield f"must be one of {sorted(BASE_MODEL_RELATIONS)}"
    elif "base_model" not in metadata:
        yield 'needs a "base_model"'


def _check_language(value: object, _: Mapping[str, Any]) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        known = isinstance(item, str) and (_LANGUAGE.fullmatch(item) or item in _OTHER_LANGUAGES)
        if not known:
            yield f"must only contain lower case ISO 639 codes, not {item!r}"


def _check_pipeline_tag(value: object, _: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(value, str) or value not in PIPELINE_TAGS:
        yield f"must be a known task, not {value!r}"


def _check_strings(value: object, _: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(value, list) or any(not isinstance(item, str) for item in value):
        yield "must be a list of strings"


def _check_string_or_strings(value: object, _: Mapping[str, Any]) -> Iterator[str]:
    if any(not isinstance(item, str) for item in (value if isinstance(value, list) else [value])):
        yield "must be a string or a list of strings"


def _check_string(value: object, _: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(value, str):
        yield "must be a string"


def _check_model_index(value: object, _: Mapping[str, Any]) -> Iterator[str]:
    """What huggingface_hub's own reader asks for, `model_index_to_eval_results`."""
    for number, model in enumerate(value if isinstance(value, list) else [value]):
        results = model.get("results") if isinstance(model, dict) else None
        if not isinstance(results, list) or not isinstance(model.get("name"), str):
            yield f"[{number}] needs a name and a list of results"
            return
        for place, result in enumerate(results):
            if not _is_result(result):
                yield f"[{number}].results[{place}] needs task.type, dataset.type, dataset.name, and metrics"


def _is_result(result: object) -> bool:
    if not isinstance(result, dict):
        return False
    task, dataset, metrics = (result.get(key) for key in ("task", "dataset", "metrics"))
    if not (isinstance(task, dict) and isinstance(dataset, dict) and isinstance(metrics, list)):
        return False
    names = (task.get("type"), dataset.get("type"), dataset.get("name"))
    return all(isinstance(name, str) for name in names) and all(
        isinstance(each, dict) and isinstance(each.get("type"), str) and "value" in each for each in metrics
    )


def _check_bool(value: object, _: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(value, bool):
        yield "must be true or false"


_CHECKS: dict[str, Callable[[object, Mapping[str, Any]], Iterator[str]]] = {
    "license": _check_license,
    "license_name": _check_license_name,
    "license_link": _check_string,
    "base_model": _check_base_model,
    "base_model_relation": _check_relation,
    "new_version": _check_string,
    "language": _check_language,
    "pipeline_tag": _check_pipeline_tag,
    "library_name": _check_string,
    "tags": _check_strings,
    "datasets": _check_string_or_strings,
    "model-index": _check_model_index,
    "inference": lambda value, metadata: iter(()) if isinstance(value, dict) else _check_bool(value, metadata),
}
