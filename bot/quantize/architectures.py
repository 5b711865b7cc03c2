"""What the decoder layers of a model hold: linears and mixtures of experts; and whether it can read its inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from bot.checkpoint.config_values import most_tokens
from bot.checkpoint.constants import SOURCE_FLOATS
from bot.checkpoint.experts import SeparateExperts
from bot.checkpoint.selection import Mixture, Selection, Shape, check_listed, select_linears
from bot.checkpoint.skeleton import Skeleton
from bot.errors import QuantizationError, UnsupportedModelError
from bot.records import Layers, Recipe, TensorInfo


def layers_of(skeleton: Skeleton, tensors: Mapping[str, TensorInfo]) -> Layers:
    """What the plan needs to know of a model. tensors: the source's."""
    layers, path, origins = skeleton.layers, skeleton.path, skeleton.origins
    linears = linears_inside(layers, path)

    def stored(key: str) -> str:
        return origins[key].names(tensors)[0]

    def info(name: str, key: str, shape: tuple[int, ...]) -> TensorInfo:
        return TensorInfo(name=name, dtype=tensors[stored(key)].dtype, shape=shape)

    # A tensor of the layer may be stored in a list of its own kind.
    prefixes = Counter(stored(key).partition(".0.")[0] for key in origins if key.startswith(f"{path}.0."))
    return Layers(
        path=path,
        stored_path=prefixes.most_common(1)[0][0],
        linears=tuple(info(name, f"{name}.weight", shape) for name, shape in linears.items()),
        others=tuple(info(name, key, shape) for name, (key, shape) in _others(layers, path).items()),
        experts={mixture.path: mixture.experts for mixture in mixtures_inside(layers, path)},
        fixed={name: reason for name in linears if (reason := skeleton.why_fixed(f"{name}.weight"))},
    )


def others_inside(layers: nn.Module, path: str) -> dict[str, tuple[int, ...]]:
    """Full path, without `.weight`, and shape of every parameter in the layers that is a matrix of no linear."""
    return {name: shape for name, (_, shape) in _others(layers, path).items()}


def _others(layers: nn.Module, path: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """As others_inside, with the parameters' names too."""
    linears = {f"{name}.weight" for name in linears_inside(layers, path)}
    named = ((f"{path}.{name}", tuple(value.shape)) for name, value in layers.named_parameters())
    return {
        name.removesuffix(".weight"): (name, shape)
        for name, shape in named
        if len(shape) > 1 and name not in linears
    }


def select(skeleton: Skeleton, recipe: Recipe) -> Selection:
    """What of the model is packed. Raises as select_linears does."""
    layers, path = skeleton.layers, skeleton.path
    linears = linears_inside(layers, path)
    fixed = {name: reason for name in linears if (reason := skeleton.why_fixed(f"{name}.weight"))}
    return select_linears(
        linears,
        mixtures_inside(layers, path),
        recipe=recipe,
        fixed=fixed,
        others=others_inside(layers, path),
    )


def listed_names(skeleton: Skeleton, selection: Selection, tensors: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    """What config.json lists: every linear and router that is not packed, and what text does not reach.

    By stored names, and by the model's where these are others. The output embedding is nowhere packed.
    """
    packed = {skeleton.name_of(name) for name in selection.packed}
    paths = [
        *matrices_inside(skeleton.layers, skeleton.path, selection),
        *skeleton.linears_outside(),
        *(child for path in skeleton.unread for child in _children(skeleton.model, path)),
    ]
    stored = {path: _stored_path(skeleton, path) for path in paths}
    names = dict.fromkeys(name for path, other in stored.items() if other for name in (other, path))
    check_listed(names, packed | set(selection.packed))
    others = {name.rpartition(".")[0] for name in tensors} - packed
    if not names and any(other in name for other in others for name in packed):
        # Without a list vLLM takes the modules of all other tensors, and each of them as a substring.
        return ("lm_head",)
    return tuple(names)


def _children(model: nn.Module, path: str) -> Iterator[str]:
    """What a module consists of, or itself. Servers rename its path only where something follows it."""
    module = model.get_submodule(path)
    if next(module.parameters(recurse=False), None) is not None:
        yield path
    yield from (f"{path}.{name}" for name, _ in module.named_children())


def _stored_path(skeleton: Skeleton, path: str) -> str | None:
    """The path of a module in the stored names of its weights; None if it has no matrix."""
    parameters = skeleton.model.get_submodule(path).named_parameters()
    keys = {f"{path}.{key}" for key, value in parameters if value.dim() > 1 and key.endswith("weight")}
    for key in sorted(keys & set(skeleton.origins)):
        inside = key.removeprefix(path)
        if (name := skeleton.origins[key].name).endswith(inside):
            return name.removesuffix(inside)
    return path if keys else None


def linears_inside(layers: nn.Module, path: str) -> dict[str, Shape]:
    """Full path and shape of every linear in the decoder layers, in order."""
    return {
        f"{path}.{name}": (module.out_features, module.in_features)
        for name, module in layers.named_modules()
        if isinstance(module, nn.Linear)
    }


def matrices_inside(layers: nn.Module, path: str, selection: Selection) -> tuple[str, ...]:
    """Full path of everything in the decoder layers that holds a matrix and is not packed.

    Routers of a class of their own are among it; experts are named by their common path.
    """
    found = {
        f"{path}.{name}": None
        for name, module in layers.named_modules()
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter) and weight.dim() == 2
    }
    packed = frozenset(selection.packed)
    mixtures = mixtures_inside(layers, path)
    unpacked = [name for name in found if name not in packed]
    return tuple(
        dict.fromkeys(
            next((mixture.path for mixture in mixtures if mixture.holds(name)), name) for name in unpacked
        )
    )


def mixtures_inside(layers: nn.Module, path: str = "") -> tuple[Mixture, ...]:
    """The mixtures: separated experts, and lists of equal modules beside a router. path: prepended to theirs."""
    return tuple(
        Mixture(path=f"{path}.{name}" if path else name, experts=sum(map(_holds_linears, module.children())))
        for name, module in layers.named_modules()
        if isinstance(module, SeparateExperts)
        or (isinstance(module, nn.ModuleList) and _are_experts(layers, name))
    )


def _holds_linears(module: nn.Module) -> bool:
    return any(isinstance(each, nn.Linear) for each in module.modules())


def _are_experts(layers: nn.Module, path: str) -> bool:
    """Whether the modules of a list are equal, and a matrix beside it has a row for each of them."""
    parent, _, last = path.rpartition(".")
    children = list(layers.get_submodule(path).children())
    shapes = [{name: value.shape for name, value in child.named_parameters()} for child in children]
    if (
        not path
        or len(children) < 2
        or not _holds_linears(children[0])
        or any(each != shapes[0] for each in shapes)
    ):
        return False
    return any(
        value.dim() == 2 and len(value) == len(children)
        for name, value in layers.get_submodule(parent).named_parameters()
        if not name.startswith(f"{last}.")
    )


def check_dtypes(chosen: Mapping[str, TensorInfo]) -> None:
    """Raises UnsupportedModelError for weights that are not plain floats, as quantized ones are."""
    for info in chosen.values():
        if info.dtype not in SOURCE_FLOATS:
            raise UnsupportedModelError(
                f"{info.name} is {info.dtype}; only {', '.join(SOURCE_FLOATS)} are quantized",
                hint="Start from the model in full precision.",
            )


def check_blocks(blocks: Tensor, model: Any) -> None:
    """Raises QuantizationError when the model cannot read these token ids [samples, seq_len]."""
    vocabulary = model.get_input_embeddings().num_embeddings
    if blocks.dim() != 2 or not blocks.numel():
        raise QuantizationError(f"calibration blocks of shape {list(blocks.shape)}, not [samples, seq_len]")
    if int(blocks.min()) < 0 or int(blocks.max()) >= vocabulary:
        raise QuantizationError(
            f"calibration token {int(blocks.max())} is not in the model's vocabulary of {vocabulary}",
            hint="The tokenizer does not belong to these weights.",
        )
    most = most_tokens(model.config.get_text_config().to_dict())
    if most is not None and blocks.shape[1] > most:
        raise QuantizationError(
            f"calibration blocks of {blocks.shape[1]} tokens, the model reads {most}",
            hint="Set a smaller seq_len in the entry's calibration.",
        )
