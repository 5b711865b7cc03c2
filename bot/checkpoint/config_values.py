"""What config.json says, read without building the model. No torch: planning uses it too."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from bot.checkpoint.config import text_settings
from bot.errors import UnsupportedModelError
from bot.text import one_line

_LAYER_COUNT = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")

# By the names of different families. Some types have a list of them, one for each layer.
_POSITIVE = frozenset(
    {
        *_LAYER_COUNT,
        *("hidden_size", "n_embd", "d_model"),
        *("num_attention_heads", "n_head", "n_heads"),
        "vocab_size",
    }
)
_NOT_NEGATIVE = frozenset(
    {
        *("num_key_value_heads", "head_dim", "intermediate_size", "moe_intermediate_size"),
        *("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok"),
        *("max_position_embeddings", "n_positions"),
    }
)
# The longest context of a model is 10 million tokens. Far larger numbers would fill the memory when it is built.
_LARGEST = 100_000_000
_HINT = "config.json is wrong; look at it upstream."
_POSITIONS = ("max_position_embeddings", "n_positions")
# Their positions begin behind the id of the padding token, so that their embeddings have rows that no text uses.
_POSITIONS_AFTER_PADDING = frozenset(
    {"camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)


def layer_count(config: Mapping[str, Any]) -> int | None:
    settings = text_settings(config)
    counts = (settings.get(name) for name in _LAYER_COUNT)
    return next((count for count in counts if type(count) is int and count > 0), None)


def most_tokens(config: Mapping[str, Any]) -> int | None:
    """How many tokens the model reads at once; None where config.json does not say, or nothing sensible."""
    settings = text_settings(config)
    stated = next((settings[name] for name in _POSITIONS if settings.get(name) is not None), None)
    if type(stated) is not int:
        return None
    if settings.get("model_type") in _POSITIONS_AFTER_PADDING:
        padding = settings.get("pad_token_id")
        stated -= (padding if type(padding) is int else 1) + 1
    return stated if stated > 0 else None


def ties_embeddings(config: Mapping[str, Any]) -> bool:
    """Whether it says that the output embedding is the input embedding. Where it is silent, the type decides."""
    key = "tie_word_embeddings"
    return config.get(key, text_settings(config).get(key)) is True


def quantized_as(config: Mapping[str, Any]) -> str | None:
    """How the stored weights are quantized already, in a word or two; None where they are not."""
    found = text_settings(config).get("quantization_config")
    if found is not None:
        method = found.get("quant_method") if isinstance(found, dict) else None
        return one_line(method or "quantization_config", 40)
    # https://github.com/ml-explore/mlx-lm writes this key, and not always the other.
    mlx = config.get("quantization")
    return "MLX" if isinstance(mlx, dict) and "bits" in mlx else None


def check_values(config: Mapping[str, Any], tensors: Collection[Any]) -> None:
    """Raises UnsupportedModelError for a size that is no size, or that the stored tensors cannot have.

    Also before transformers reads the config: it makes lists as long as the model has layers.
    """
    for key, value in text_settings(config).items():
        if key in _POSITIVE or key in _NOT_NEGATIVE:
            _check_size(key, value, smallest=1 if key in _POSITIVE else 0)
    for key, value in _sizes_inside(config):
        # The layers of one part of the model, such as a vision tower, have a tensor each at least.
        most = len(tensors) if key in _LAYER_COUNT else _LARGEST
        if type(value) is int and value > most:
            found = f"and the weights hold {most} tensors" if key in _LAYER_COUNT else "more than any model has"
            raise UnsupportedModelError(f"config.json: {key} is {_shown(value)}, {found}", hint=_HINT)


def doubtful_value(config: Mapping[str, Any]) -> str | None:
    """What most types do not accept, and some do not look at."""
    settings = text_settings(config)
    pad, vocabulary = settings.get("pad_token_id"), settings.get("vocab_size")
    if type(pad) is int and type(vocabulary) is int and not -vocabulary <= pad < vocabulary:
        return f"config.json: pad_token_id is {_shown(pad)}, and vocab_size {_shown(vocabulary)}"
    return None


def _check_size(key: str, value: object, *, smallest: int) -> None:
    for item in value if isinstance(value, list) else [value]:
        # null is the type's default; bool is a subclass of int in Python.
        if item is not None and (type(item) is not int or item < smallest):
            kind = "whole number" if smallest == 0 else "positive whole number"
            raise UnsupportedModelError(f"config.json: {key} is {_shown(item)}, not a {kind}", hint=_HINT)


def _sizes_inside(config: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """The sizes of the model and of each of its parts."""
    parts: list[object] = [config]
    while parts:
        part = parts.pop()
        if isinstance(part, Mapping):
            parts += part.values()
            yield from ((key, value) for key, value in part.items() if key in _POSITIVE | _NOT_NEGATIVE)


def _shown(value: object) -> str:
    return one_line(repr(value), 40)
