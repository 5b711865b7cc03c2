"""The artifact's config.json: upstream's text with what readers of AWQ need, and nothing else touched.

A library that parses and writes a config renames keys that older readers need (`rope_theta`); so the text is
edited.
"""

from __future__ import annotations

from typing import Any

from bot.checkpoint.jsontext import parse_object, set_key
from bot.errors import UnsupportedModelError, UpstreamError
from bot.records import Recipe

DTYPE_KEYS = ("torch_dtype", "dtype")


def parse_config(content: bytes, *, where: str = "config.json") -> dict[str, Any]:
    """Upstream's config. Raises UpstreamError when it is no JSON object, or holds duplicate keys or NaN."""
    return parse_object(content, where=where)


def artifact_config(upstream: bytes, *, recipe: Recipe, artifact_dtype: str, where: str = "config.json") -> bytes:
    """upstream's bytes with `quantization_config` added and its dtype key set to artifact_dtype (`float16`).

    Raises UpstreamError as parse_config does, UnsupportedModelError when the model is quantized already.
    """
    config = parse_config(upstream, where=where)
    if config.get("quantization_config") is not None:
        raise UnsupportedModelError(
            f"{where}: has a quantization_config, the model is quantized already",
            hint="Start from the model in full precision.",
        )
    content = upstream
    for key in [key for key in DTYPE_KEYS if key in config] or [DTYPE_KEYS[0]]:
        content = set_key(content, key, artifact_dtype, where=where)
    return set_key(content, "quantization_config", quantization_config(recipe), where=where)


def quantization_config(recipe: Recipe) -> dict[str, object]:
    """What vLLM, SGLang, TGI and transformers read; the keys that AutoAWQ 0.2.9 writes."""
    return {
        "quant_method": "awq",
        "bits": recipe.bits,
        "group_size": recipe.group_size,
        "zero_point": recipe.zero_point,
        "version": recipe.version,
        "modules_to_not_convert": list(recipe.modules_to_not_convert) or None,
    }


def with_chat_template(tokenizer_config: bytes, template: bytes, *, where: str) -> bytes:
    """tokenizer_config.json with the template of `chat_template.jinja` inserted where it has none.

    Some servers read only that key. Raises UpstreamError when either cannot be read.
    """
    if parse_object(tokenizer_config, where=where).get("chat_template") is not None:
        return tokenizer_config
    try:
        text = template.decode()
    except UnicodeDecodeError as error:
        raise UpstreamError(
            f"{where}: the template beside it is not UTF-8: {error}", hint="Look at it upstream."
        ) from None
    return set_key(tokenizer_config, "chat_template", text, where=where)
