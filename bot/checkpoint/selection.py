"""Which linears of the decoder layers are packed, which are not, and what config.json must list. No torch.

What a server holds unpacked must be listed, and what it merges into one matrix must be packed together:
https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/layers/quantization/auto_awq.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod

from bot.checkpoint.constants import PER_INT32
from bot.errors import UnsupportedModelError, WatchlistError
from bot.records import Recipe

Shape = tuple[int, int]  # [out, in]

# What vLLM and SGLang load as one matrix, which is either packed or not, by the name that it has there.
MERGED_BY_SERVERS: dict[str, frozenset[str]] = {
    "qkv_proj": frozenset({"q_proj", "k_proj", "v_proj", "g_proj"}),
    "gate_up_proj": frozenset({"gate_proj", "up_proj"}),
    "fused_qkv_a_proj": frozenset({"q_a_proj", "kv_a_proj_with_mqa"}),
    "in_proj_qkvz": frozenset({"in_proj_qkv", "in_proj_z"}),
    "in_proj_ba": frozenset({"in_proj_b", "in_proj_a"}),
    "w13": frozenset({"w1", "w3"}),
}
# Routers and the gates of shared experts are small, and decide where a whole token goes.
ROUTERS = frozenset({"router", "gate", "gating", "wg", "switch", "shared_expert_gate", "shared_gate"})
# Servers hold these unpacked: small inputs of linear attention, and mixers of Mamba 1, which have an x_proj.
_SMALL = frozenset({"in_proj_ba", "in_proj_a", "in_proj_b"})
_MAMBA_1 = "x_proj"
_MERGED = "servers merge it with"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """The experts of a layer: children of the module at `path`, named `0`, `1`, …"""

    path: str
    experts: int

    def name(self, expert: int, inside: str) -> str:
        return f"{self.path}.{expert}.{inside}"

    def holds(self, name: str) -> bool:
        return self.expert_of(name) is not None

    def expert_of(self, name: str) -> int | None:
        number = name.removeprefix(f"{self.path}.").partition(".")[0]
        return int(number) if name.startswith(f"{self.path}.") and number.isdecimal() else None

    def inside(self, name: str) -> str:
        """The name relative to its expert."""
        return name.removeprefix(f"{self.path}.").partition(".")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """By full path. packed: the linears that are quantized. left_out: the other linears of the layers, and why.

    left_out_share: of the weights of the layers, routers not counted.
    """

    packed: tuple[str, ...]
    left_out: Mapping[str, str]
    left_out_share: float


def select_linears(
    linears: Mapping[str, Shape],
    mixtures: Collection[Mixture],
    *,
    recipe: Recipe,
    fixed: Mapping[str, str] | None = None,
    others: Mapping[str, tuple[int, ...]] | None = None,
) -> Selection:
    """What the recipe quantizes, and what stays in the source's precision.

    linears: every one in the decoder layers, by full path. fixed: those whose packed form has no place in a
    checkpoint, and why. others: shapes of other matrices in the layers, which count as not packed. Raises
    WatchlistError when the recipe leaves out a linear that does not exist, or some of those that servers merge;
    UnsupportedModelError when too much cannot be packed.
    """
    asked = recipe.modules_to_not_convert
    for name in asked:
        _check_left_out(name, asked, linears)
    members = _members(linears, mixtures)
    routers = {name for name in linears if name not in members and _is_router(name, linears[name], mixtures)}
    left_out = dict.fromkeys(asked, "left out by the recipe")
    left_out |= {name: reason for name, reason in (fixed or {}).items() if name not in routers}
    for name in linears:
        if name not in routers and (reason := _unpackable(name, linears, recipe.group_size)):
            left_out.setdefault(name, reason)
    merged: dict[str, str] = {}
    for name in left_out:
        together = members.get(name) or merged_with(name, linears)
        if together[0] not in merged:
            merged |= dict.fromkeys(together, name)
    for name, other in merged.items():
        left_out.setdefault(name, f"{_MERGED} {other}")
    packed = tuple(name for name in linears if name not in left_out and name not in routers)
    left_out |= dict.fromkeys(routers, "a router")
    sizes = {name: out * columns for name, (out, columns) in linears.items() if name not in routers}
    others = {name: shape for name, shape in (others or {}).items() if not _is_router(name, shape, mixtures)}
    sizes |= {name: prod(shape) for name, shape in others.items()}
    share = 1 - sum(sizes[name] for name in packed) / (sum(sizes.values()) or 1)
    unasked = {name: reason for name, reason in left_out.items() if name in sizes and name not in asked}
    unasked |= dict.fromkeys(others, "it is not a linear")
    _check_share(packed, unasked, {**linears, **others}, sizes, recipe)
    return Selection(
        packed=packed,
        left_out={name: left_out[name] for name in linears if name in left_out},
        left_out_share=share,
    )


def merged_with(linear: str, linears: Collection[str]) -> tuple[str, ...]:
    """Those of linears that a server merges with this one, itself included."""
    parent, _, last = linear.rpartition(".")
    for merged in MERGED_BY_SERVERS.values():
        if last in merged:
            return tuple(
                name for name in linears if name.rpartition(".")[0] == parent and name.rpartition(".")[2] in merged
            )
    return (linear,)


def check_listed(listed: Collection[str], packed: Collection[str]) -> None:
    """Raises UnsupportedModelError when a name that config.json lists makes servers leave out a packed linear too.

    They match it as a substring of a module's path, also of the path of what they merge.
    """
    for name in packed:
        parent, _, last = name.rpartition(".")
        merged = [f"{parent}.{other}" for other, members in MERGED_BY_SERVERS.items() if last in members]
        for path in (name, *merged):
            if hit := next((each for each in listed if each in path), None):
                raise UnsupportedModelError(
                    f"servers would also leave out {path} for {hit}",
                    hint="This version cannot quantize it; put it on `hold:` in the watchlist.",
                )


def _is_router(name: str, shape: tuple[int, ...], mixtures: Collection[Mixture]) -> bool:
    """Whether it chooses experts: a linear beside a mixture, by its name or by an output for each expert.

    Linears inside of experts are not asked about.
    """
    beside = [mixture for mixture in mixtures if name.startswith(f"{mixture.path.rpartition('.')[0]}.")]
    if not beside:
        return False
    inside = name.removeprefix(f"{beside[0].path.rpartition('.')[0]}.")
    if inside.partition(".")[0] in ROUTERS:  # `shared_experts.gate` is none
        return True
    return "." not in inside and shape[0] == beside[0].experts


def _unpackable(name: str, linears: Mapping[str, Shape], group_size: int) -> str | None:
    parent, _, last = name.rpartition(".")
    out, columns = linears[name]
    if last in _SMALL or f"{parent}.{_MAMBA_1}" in linears:
        return "servers hold it unpacked"
    if columns % group_size:
        return f"{columns} input channels are not a multiple of the group size {group_size}"
    if out % PER_INT32:
        return f"{out} output channels are not a multiple of {PER_INT32}"
    return None


def _members(linears: Collection[str], mixtures: Collection[Mixture]) -> dict[str, tuple[str, ...]]:
    """For each linear of an expert those of all experts of its layer: they are packed together or not at all."""
    paths = {mixture.path for mixture in mixtures}
    found: dict[str, list[str]] = {}
    for name in linears:
        parts = name.split(".")
        for place, part in enumerate(parts):
            if part.isdecimal() and (path := ".".join(parts[:place])) in paths:
                found.setdefault(path, []).append(name)
    return {name: together for names in found.values() for together in [tuple(names)] for name in together}


def _check_share(
    packed: Collection[str],
    unasked: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, int],
    recipe: Recipe,
) -> None:
    """unasked: what is left out though the recipe does not ask for it, and why."""
    share = sum(sizes[name] for name in unasked) / (sum(sizes.values()) or 1)
    if packed and share <= recipe.max_unquantized_share:
        return
    if not unasked:
        raise UnsupportedModelError(
            "its layers hold no linears that could be quantized",
            hint="Name fewer modules under modules_to_not_convert." if shapes else "",
        )
    causes = [name for name, reason in unasked.items() if not reason.startswith(_MERGED)]
    largest = max(causes or unasked, key=lambda name: sizes[name])
    raise UnsupportedModelError(
        f"{share:.0%} of the weights in its layers cannot be packed, such as {largest} {list(shapes[largest])}: "
        f"{unasked[largest]}",
        hint=_smaller_group(shapes, unasked, recipe.group_size)
        or "Set `max_unquantized_share` in the entry's recipe to allow it.",
    )


def _smaller_group(
    shapes: Mapping[str, tuple[int, ...]], unasked: Mapping[str, str], group_size: int
) -> str | None:
    causes = [name for name, reason in unasked.items() if not reason.startswith(_MERGED)]
    if any("group size" not in unasked[name] for name in causes):
        return None  # something else than the group size is the reason
    for smaller in (64, 32):
        if smaller < group_size and all(shapes[name][1] % smaller == 0 for name in causes):
            return f"Use `group_size: {smaller}`, which divides them."
    return None


def _check_left_out(name: str, left_out: tuple[str, ...], linears: Mapping[str, Shape]) -> None:
    if name not in linears:
        raise WatchlistError(
            f"modules_to_not_convert: the model has no linear {name!r} in its layers",
            hint="Write the full path, one per layer, such as model.layers.3.mlp.down_proj.",
        )
    apart = [other for other in merged_with(name, linears) if other not in left_out]
    if apart:
        raise WatchlistError(
            f"modules_to_not_convert: {name} without {', '.join(apart)}",
            hint="Servers merge these into one matrix: leave them out together or not at all.",
        )
    # vLLM and SGLang match the name as a substring of a module's path.
    hit = [other for other in linears if name in other and other not in left_out]
    if hit:
        raise WatchlistError(
            f"modules_to_not_convert: servers would also leave out {hit[0]} for {name}",
            hint="Name both or neither: servers match the name as a substring of a module's path.",
        )
