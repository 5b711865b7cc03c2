"""Any file and any answer from upstream is read or refused by name; nothing else is raised.

Watchlists, headers of weights and edits of config.json have such tests beside their code.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import httpx2
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import ModelInfo
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.checkpoint.config import parse_config, text_settings
from bot.checkpoint.config_values import check_values, doubtful_value, layer_count, most_tokens, quantized_as
from bot.checkpoint.repo_files import is_safe_path
from bot.checkpoint.small_files import check_small_files, has_chat_template, template_warnings
from bot.checkpoint.weight_files import shard_names, unheld_tensors
from bot.errors import BotError
from bot.hub.session import wait_before_retry
from bot.hub.sources import _read_upstream
from bot.records import Upstream

NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, -1, 0, 1e400, float("nan")])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def objects(*keys: str) -> st.SearchStrategy[dict[str, Any]]:
    """JSON objects with some of these keys, and others."""
    return st.dictionaries(st.sampled_from(keys) | st.text(max_size=12), JSON, max_size=8)


def encoded(found: object) -> bytes:
    return json.dumps(found).encode("utf-8", "replace")


CONFIGS = objects(
    *("model_type", "architectures", "text_config", "num_hidden_layers", "hidden_size", "vocab_size"),
    *("max_position_embeddings", "pad_token_id", "quantization_config", "quantization", "auto_map"),
)
anything = settings(deadline=None, max_examples=200, database=None)


@anything
@given(content=CONFIGS.map(encoded) | JSON.map(encoded) | st.binary(max_size=100), tensors=st.integers(0, 5))
def test_any_config_is_read_or_refused(content: bytes, tensors: int) -> None:
    with contextlib.suppress(BotError):
        config = parse_config(content)
        check_values(config, range(tensors))
        assert isinstance(text_settings(config), Mapping)
        for look in (layer_count, most_tokens, quantized_as, doubtful_value):
            look(config)


@anything
@given(index=objects("weight_map", "metadata") | st.fixed_dictionaries({"weight_map": objects("a")}))
def test_any_index_names_files_inside_the_repo_or_is_refused(index: dict[str, Any]) -> None:
    with contextlib.suppress(BotError):
        names = shard_names(index, where="model.safetensors.index.json")
        assert all(is_safe_path(name) for name in names)
        unheld_tensors(index, {})


TEMPLATES = st.text(alphabet="{}%#-\"'|. \nifor endfor[]()x1", max_size=60)
SMALL_FILES = st.fixed_dictionaries(
    {},
    optional={
        "tokenizer_config.json": objects("chat_template", "tokenizer_class").map(encoded)
        | TEMPLATES.map(lambda text: encoded({"chat_template": text}))
        | st.binary(max_size=60),
        "generation_config.json": objects("eos_token_id", "temperature").map(encoded) | st.binary(max_size=60),
        "chat_template.jinja": TEMPLATES.map(str.encode) | st.binary(max_size=60),
    },
)


@anything
@given(files=SMALL_FILES)
def test_any_small_files_are_read_or_refused(files: dict[str, bytes]) -> None:
    for look in (check_small_files, has_chat_template, template_warnings):
        with contextlib.suppress(BotError):
            look(files)


@anything
@given(
    card=objects("license", "license_name", "license_link", "language", "tags", "pipeline_tag", "base_model"),
    answer=objects("gated", "private", "pipeline_tag", "tags"),
    name=st.text(max_size=30),
)
def test_any_card_gives_facts(card: dict[str, Any], answer: dict[str, Any], name: str) -> None:
    try:
        info = ModelInfo(**{"id": name, "sha": "0" * 40, "siblings": [], **answer, "cardData": card})  # type: ignore[no-untyped-call]
    except Exception:  # huggingface_hub's own, which reading sources refuses by name
        return
    found = _read_upstream("lab/model", info, endpoint="https://huggingface.co")
    assert isinstance(found, Upstream)
    assert found.license_file is None  # there are no files


HEADERS = st.dictionaries(
    st.sampled_from(["RateLimit", "RateLimit-Policy", "Retry-After", "X-Error-Message"]),
    st.text(alphabet='abr=qtw;"0123456789-+.eEnNiIfF, ', max_size=40),
)


@anything
@given(headers=HEADERS, status=st.sampled_from([408, 429, 500, 502, 503, 504, 404, 200]))
def test_any_header_gives_a_wait_that_ends(headers: dict[str, str], status: int) -> None:
    response = httpx2.Response(status, headers=headers, request=httpx2.Request("GET", "https://hub"))
    wait = wait_before_retry(HfHubHTTPError("no", response=response))
    assert isinstance(wait, bool) or 0 <= wait <= 330
