"""What serving a model keeps in memory beside its weights: the keys and values of the tokens so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Of one number of the cache. Servers keep it in the dtype of the activations, float16 or bfloat16.
_VALUE_BYTES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedLayers:
    """Layers of one kind. heads, width: of what one layer keeps of a token, once for keys and once for values.

    latent: one vector of that width stands for both (multi-head latent attention). window: the most tokens that
    are kept; None for all.
    """

    layers: int
    heads: int
    width: int
    latent: bool = False
    window: int | None = None

    @property
    def value_bytes(self) -> int:
        return _VALUE_BYTES

    @property
    def token_bytes(self) -> int:
        """For each token, in all of these layers."""
        return self.layers * self.heads * self.width * (1 if self.latent else 2) * _VALUE_BYTES

    def size_bytes(self, tokens: int) -> int:
        return self.token_bytes * (tokens if self.window is None else min(tokens, self.window))


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCache:
    """The cache of one sequence. contexts: lengths in tokens to state it for, as far as the model reads them.

    problem: why it is not known, which quotes config.json.
    """

    layers: tuple[CachedLayers, ...] = ()
    contexts: tuple[int, ...] = ()
    problem: str = ""

    def size_bytes(self, tokens: int) -> int:
        return sum(part.size_bytes(tokens) for part in self.layers)
