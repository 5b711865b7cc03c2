"""The modules that stayed as they were, in the words and few paths that a reader of the card needs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bot.checkpoint.selection import ROUTERS
from bot.text import escape_markdown

_PATH = re.compile(r"[A-Za-z0-9_.*]{1,200}")
_LAYER = re.compile(r"^(.*?\.)(\d+)(?=\.)", re.DOTALL)  # the first number of a path is that of its layer
_HEAD = "lm_head"  # listed for servers; the card names the output head anyway
_MOST_PATHS = 8
_TEXT_MODELS = ("", "model")  # what holds both the text decoder and what stands beside it

# Parts of a multimodal model beside its text decoder, by what their path says. The first that fits: a
# `vision_projector` is a projector.
_PARTS = (
    ("projector", re.compile(r"proj|connector|merger|adapter|aligner|embed_(?:vision|audio)")),
    ("vision tower", re.compile(r"vis|image|vit|siglip|clip")),
    ("audio tower", re.compile(r"audio|speech|sound")),
)
_OTHER = "other parts"


def unquantized_text(names: Sequence[str], *, mixture: bool) -> str:
    """Routers, towers and others with their paths, as Markdown; empty if there are none.

    names: full paths of modules, from config.json. mixture: the model has experts, so that there are routers.
    """
    by_word: dict[str, list[_Path]] = {}
    for path in _distinct(names):
        by_word.setdefault(_word(path.path, mixture=mixture), []).append(path)
    order = sorted(by_word, key=lambda word: (word == "", word == _OTHER))
    parts = [f"{word} {_listed(by_word[word])}".strip() for word in order]
    return "; ".join(parts)


def parts_beside_text(names: Iterable[str]) -> tuple[str, ...]:
    """What a multimodal model has beside its text decoder: `vision tower`, `projector`; empty for other models."""
    found = {_word_beside(path) for path in names if _is_beside(path)}
    return tuple(word for word in ("vision tower", "audio tower", "projector", _OTHER) if word in found)


@dataclass(frozen=True, slots=True)
class _Path:
    """Modules of the same path, with `*` for the number of their layer if there are several."""

    path: str
    layers: int

    @property
    def text(self) -> str:
        shown = f"`{self.path}`" if _PATH.fullmatch(self.path) else escape_markdown(self.path)
        return f"{shown} ({self.layers} layers)" if self.layers > 1 else shown


def _distinct(names: Sequence[str]) -> Iterator[_Path]:
    """One path for all layers.

    Where a checkpoint's names differ from those of the model's class, config.json lists both. The checkpoint's
    stand first, and are kept. What consists of several modules that are listed is one.
    """
    beside: list[str] = []
    inside: dict[str, dict[str, str]] = {}
    parents = Counter(name.rpartition(".")[0] for name in names if _is_beside(name))
    for listed in names:
        parent = listed.rpartition(".")[0]
        name = parent if parent not in _TEXT_MODELS and parents[parent] > 1 and _is_beside(listed) else listed
        if layer := _LAYER.match(name):
            inside.setdefault(name[layer.end() :], {}).setdefault(layer[2], name)
        elif name != _HEAD and name not in beside and not any(_same_end(name, other) for other in beside):
            beside.append(name)
    yield from (_Path(name, 0) for name in beside)
    for by_layer in inside.values():
        first = next(iter(by_layer.values()))
        yield _Path(_LAYER.sub(r"\1*", first) if len(by_layer) > 1 else first, len(by_layer))


def _same_end(one: str, other: str) -> bool:
    return one.endswith(f".{other}") or other.endswith(f".{one}")


def _word(path: str, *, mixture: bool) -> str:
    if _is_beside(path):
        return _word_beside(path)
    return "routers" if mixture and not ROUTERS.isdisjoint(path.split(".")) else ""


def _is_beside(path: str) -> bool:
    inside_text = ".*" in path or _LAYER.match(path) is not None or "per_layer" in path
    return not inside_text and path != _HEAD


def _word_beside(path: str) -> str:
    return next((word for word, pattern in _PARTS if pattern.search(path.lower())), _OTHER)


def _listed(paths: Sequence[_Path]) -> str:
    more = f" and {len(paths) - _MOST_PATHS} more" if len(paths) > _MOST_PATHS else ""
    return ", ".join(path.text for path in paths[:_MOST_PATHS]) + more
