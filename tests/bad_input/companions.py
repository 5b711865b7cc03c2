"""Small files that the artifact carries: generation config, processor settings, special tokens."""

from __future__ import annotations

import json

from tests.bad_input.case import Accepted, Case, Change, Kind, Place, Refused

_GENERATION = "generation_config.json"


def _planned(name: str, report: str, files: dict[str, Change], right: Refused | Accepted) -> Case:
    return Case(name=name, report=report, kind=Kind.COMPANIONS, place=Place.PLAN, files=files, right=right)


def _tried(name: str, report: str, files: dict[str, Change], right: Refused | Accepted) -> Case:
    return Case(name=name, report=report, kind=Kind.COMPANIONS, place=Place.TOKENIZER, files=files, right=right)


_PLANNED = (
    _planned(
        "generation-config-is-no-json",
        "meta-llama/llama#691",
        {_GENERATION: '{"do_sample": true.\n"eos_token_id": 2}'},
        Refused(3, names=_GENERATION),
    ),
    _planned("generation-config-is-empty", "", {_GENERATION: ""}, Refused(3, names=_GENERATION)),
    _planned("generation-config-is-null", "", {_GENERATION: "null"}, Refused(3, names=_GENERATION)),
    _planned(
        "temperature-without-sampling",
        "transformers#29988",
        {_GENERATION: '{"do_sample": false, "temperature": 0.9, "top_p": 0.6}'},
        Accepted(),
    ),
    _planned(
        "end-tokens-in-the-generation-config",
        "mlx-lm#701",
        {_GENERATION: '{"eos_token_id": [2042, 2040]}'},
        Accepted(),
    ),
    _planned(
        "processor-settings-are-no-json",
        "",
        {"preprocessor_config.json": "{'size': 224}"},
        Refused(3, names="preprocessor_config.json"),
    ),
    _planned(
        "processor-template-is-no-json", "", {"chat_template.json": "{"}, Refused(3, names="chat_template.json")
    ),
    _planned(
        "special-tokens-are-a-list",
        "",
        {"special_tokens_map.json": "[]"},
        Refused(3, names="special_tokens_map.json"),
    ),
    _planned(
        "another-template-that-is-broken",
        "",
        {"additional_chat_templates/rag.jinja": "{% for"},
        Refused(3, names="rag.jinja"),
    ),
)

_TRIED = (
    _tried(
        "generation-config-is-no-json",
        "meta-llama/llama#691",
        {_GENERATION: "{'do_sample': True}"},
        Refused(3, names=_GENERATION),
    ),
    _tried(
        "temperature-without-sampling",
        "transformers#29988",
        {_GENERATION: '{"do_sample": false, "temperature": 0.9}'},
        Accepted(),
    ),
    _tried(
        "generation-setting-of-another-kind",
        "",
        {_GENERATION: '{"temperature": "warm"}'},
        Accepted(),
    ),
    _tried(
        "generation-cache-of-tomorrow",
        "",
        {_GENERATION: '{"cache_implementation": "holographic"}'},
        Refused(3, names=_GENERATION),
    ),
    _tried(
        "special-tokens-of-another-model",
        "",
        {"special_tokens_map.json": json.dumps({"eos_token": "</s>", "pad_token": {"content": "<pad>"}})},
        Accepted(),
    ),
    _tried("added-tokens-are-numbers", "", {"added_tokens.json": "[1, 2]"}, Refused(3, names="added_tokens.json")),
)

_SHOWN = (
    Case(
        name="processor-template-is-no-json",
        kind=Kind.COMPANIONS,
        place=Place.CARD,
        files={"chat_template.jinja": None, "chat_template.json": json.dumps({"chat_template": None})},
        right=Accepted(never=("Who are you?",)),
    ),
)

CASES: tuple[Case, ...] = (*_PLANNED, *_TRIED, *_SHOWN)
