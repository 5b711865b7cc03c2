"""The KV cache of a model, from its config.json and the shapes of its weights. No torch: planning uses it too.

Only model types whose attention is known are computed, and only where the stored weights agree with config.json: a
model that keeps something else per token gets no figure instead of a wrong one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from bot.checkpoint.config import text_settings
from bot.checkpoint.config_values import layer_count, most_tokens
from bot.checkpoint.constants import PER_INT32
from bot.records import CachedLayers, KVCache, TensorInfo
from bot.text import one_line

CONTEXTS = (8192, 32_768)  # tokens

# Keys and values of every token in every layer, as transformers 5.23 and vLLM implement these types.
_FULL = frozenset(
    """
    llama qwen2_moe qwen3_moe gemma olmo olmo2 olmoe granite granitemoe glm glm4 glm4_moe helium cohere stablelm
    phi seed_oss arcee ernie4_5 ernie4_5_moe dots1 qwen2_vl qwen2_vl_text qwen2_5_vl qwen2_5_vl_text qwen3_vl_text
    qwen3_vl_moe_text
    """.split()  # noqa: SIM905 - quoted, the list would be hard to read
)
_BY_SWITCH = frozenset({"qwen2", "qwen3", "smollm3"})  # `use_sliding_window` turns the window on
# `sliding_window` is that of all layers. Where it is not in the file, the first type has one of 4,096 tokens.
_EVERYWHERE = frozenset({"mistral", "mixtral", "starcoder2", "phi3", "ministral3"})
_WINDOW_BY_DEFAULT = frozenset({"mistral"})
# Every n-th layer is full, the others are not: by type, unless `layer_types` lists them.
_PATTERNS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "olmo3": 4, "gpt_oss": 2}
# One latent vector and the rotated part of the key, which vLLM and SGLang cache: https://arxiv.org/abs/2405.04434
_LATENT = frozenset({"deepseek_v2", "deepseek_v3"})
# Settings that change what is cached, and that these types do not have.
_OTHER_CACHES = ("attention_chunk_size", "use_bidirectional_attention", "num_kv_shared_layers", "index_topk")

_MAX_SIZE = 10**7
_MAX_LAYERS = 10_000
_PACKED, _PLAIN = ".qweight", ".weight"


class _UnknownError(Exception):
    """Why there is no figure, in words."""


def kv_cache(config: Mapping[str, Any], tensors: Iterable[TensorInfo]) -> KVCache:
    """config: of the source or the artifact, which are untrusted; tensors: its headers, packed or not."""
    try:
        return KVCache(layers=_layers(text_settings(config), tensors), contexts=_contexts(config))
    except _UnknownError as error:
        return KVCache(problem=str(error))


def _contexts(config: Mapping[str, Any]) -> tuple[int, ...]:
    most = most_tokens(config)
    if most is None:
        return CONTEXTS
    return tuple(tokens for tokens in CONTEXTS if tokens <= most) or (most,)


def _layers(settings: Mapping[str, Any], tensors: Iterable[TensorInfo]) -> tuple[CachedLayers, ...]:
    kind, count = settings.get("model_type"), layer_count(settings)
    if not isinstance(kind, str) or kind not in {*_FULL, *_BY_SWITCH, *_EVERYWHERE, *_PATTERNS, *_LATENT}:
        raise _UnknownError(f"what layers of the type {one_line(kind, 40)} keep of a token is not known here")
    if count is None or count > _MAX_LAYERS:
        raise _UnknownError("config.json names no sensible number of layers")
    if other := next((name for name in _OTHER_CACHES if settings.get(name)), None):
        raise _UnknownError(f"config.json sets {other}")
    widths = _widths(tensors)
    if kind in _LATENT:
        width = _size(settings, "kv_lora_rank") + _size(settings, "qk_rope_head_dim")
        _check_widths(widths, {"kv_a_proj_with_mqa": width}, count)
        return (CachedLayers(layers=count, heads=1, width=width, latent=True),)
    heads, width = _heads(settings)
    keys = heads * width
    _check_widths(
        widths,
        {"k_proj": keys}
        if "qkv_proj" not in widths
        else {"qkv_proj": 2 * keys + _attention_width(settings, width)},
        count,
    )
    sliding, window = _sliding(settings, kind, count)
    parts = ((count - sliding, None), (sliding, window))
    return tuple(
        CachedLayers(layers=layers, heads=heads, width=width, window=kept) for layers, kept in parts if layers
    )


def _heads(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Heads of keys, and values in each."""
    heads = _size(settings, "num_attention_heads")
    kv_heads = heads if settings.get("num_key_value_heads") is None else _size(settings, "num_key_value_heads")
    if settings.get("head_dim") is not None:
        return kv_heads, _size(settings, "head_dim")
    return kv_heads, _size(settings, "hidden_size") // heads


def _attention_width(settings: Mapping[str, Any], width: int) -> int:
    return _size(settings, "num_attention_heads") * width


def _sliding(settings: Mapping[str, Any], kind: str, count: int) -> tuple[int, int | None]:
    """How many layers keep a window of tokens alone, and its size."""
    sliding = _listed(settings, count)
    if sliding is None:
        sliding = _by_type(settings, kind, count)
    elif kind in _EVERYWHERE or (
        sliding and kind in _BY_SWITCH and settings.get("use_sliding_window") is not True
    ):
        raise _UnknownError("config.json has both layer_types and other settings of a window")
    return (sliding, _size(settings, "sliding_window")) if sliding else (0, None)


def _listed(settings: Mapping[str, Any], count: int) -> int | None:
    """By `layer_types`; None where there is no list."""
    kinds = settings.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != count:
        raise _UnknownError("layer_types in config.json does not list each layer")
    found = Counter(str(each) for each in kinds)
    if other := sorted(found.keys() - {"full_attention", "sliding_attention"}):
        raise _UnknownError(f"what layers of the type {one_line(other[0], 40)} keep of a token is not known here")
    return found["sliding_attention"]


def _by_type(settings: Mapping[str, Any], kind: str, count: int) -> int:
    if kind in _EVERYWHERE:
        if "sliding_window" not in settings and kind in _WINDOW_BY_DEFAULT:
            raise _UnknownError("config.json does not say whether attention has a window")
        return 0 if settings.get("sliding_window") is None else count
    if kind in _PATTERNS:
        given = settings.get("sliding_window_pattern", settings.get("_sliding_window_pattern", _PATTERNS[kind]))
        if type(given) is not int or not 0 < given <= _MAX_LAYERS:
            raise _UnknownError("sliding_window_pattern in config.json is no number of layers")
        return count - count // given
    if not settings.get("use_sliding_window"):
        return 0
    if kind not in {"qwen2", "qwen3"}:
        raise _UnknownError("config.json sets use_sliding_window")
    return count - min(count, _size(settings, "max_window_layers", smallest=0))


def _size(settings: Mapping[str, Any], name: str, *, smallest: int = 1) -> int:
    value = settings.get(name)
    if type(value) is not int or not smallest <= value <= _MAX_SIZE:
        raise _UnknownError(f"{name} in config.json is no size, or not there")
    return value


def _widths(tensors: Iterable[TensorInfo]) -> dict[str, Counter[int]]:
    """The output widths of linears by the last part of their name, and how often each occurs."""
    found: dict[str, Counter[int]] = {}
    for tensor in tensors:
        if len(tensor.shape) == 2 and tensor.name.endswith((_PACKED, _PLAIN)):
            path, _, ending = tensor.name.rpartition(".")
            width = tensor.shape[1] * PER_INT32 if f".{ending}" == _PACKED else tensor.shape[0]
            found.setdefault(path.rpartition(".")[2], Counter())[width] += 1
    return found


def _check_widths(found: Mapping[str, Counter[int]], expected: Mapping[str, int], count: int) -> None:
    """Each layer has such a linear. What config.json leaves to the default of a type would be a guess."""
    for name, width in expected.items():
        if found.get(name, Counter())[width] < count:
            raise _UnknownError(f"config.json and the shapes of {name} in the weights do not agree")
