"""What the table says about a model type, read from a model as transformers builds it."""

from __future__ import annotations

from collections.abc import Mapping

from bot.checkpoint.skeleton import Skeleton
from bot.quantize.architectures import layers_of
from bot.records import TensorInfo
from bot.watch.layers import NUMBER, ModelType


def structure_of(skeleton: Skeleton, tensors: Mapping[str, TensorInfo]) -> ModelType:
    """tensors: those of the checkpoint."""
    layers = layers_of(skeleton, tensors)
    renamed: dict[str, str] = {}
    fused: dict[str, dict[str, None]] = {}
    transposed: dict[str, bool] = {}
    found = set()
    shapes = {linear.name: linear.shape for linear in layers.linears}
    for key, origin in skeleton.origins.items():
        if not key.startswith(f"{layers.path}."):
            continue
        linear = key.removesuffix(".weight")
        inside = _inside(linear, layers.path)
        if origin.name in tensors and linear in shapes:
            stored = _inside(origin.name.removesuffix(".weight"), layers.stored_path)
            found.add(stored)
            if stored != inside:
                renamed[stored] = inside
        elif origin.name not in tensors and origin.part is not None:
            (name,) = origin.names(tensors)[:1]
            stored = _inside(name.removesuffix(".weight"), layers.stored_path)
            found.add(stored)
            fused.setdefault(stored, {})
            if linear in shapes:
                fused[stored][inside] = None
                out, columns = shapes[linear]
                rows = out * origin.part.count
                if rows != columns:
                    transposed[stored] = tensors[name].shape[1:] == (columns, rows)
    others = {
        _inside(name.removesuffix(".weight"), layers.stored_path)
        for name, info in tensors.items()
        if name.startswith(f"{layers.stored_path}.") and name.endswith(".weight") and len(info.shape) == 2
    }
    # All parameters of a mixture are laid out in the same way; of a square one the shape does not say it.
    is_transposed = any(transposed.values())
    return ModelType(
        layers=layers.path,
        stored=layers.stored_path,
        others=tuple(sorted(others - found)),
        renamed=dict(sorted(renamed.items())),
        fused={name: tuple(linears) for name, linears in sorted(fused.items())},
        transposed=is_transposed,
        fixed={_inside(name, layers.path): reason for name, reason in layers.fixed.items()},
        mixtures=tuple(sorted({_inside(path, layers.path) for path in layers.experts})),
    )


def _inside(name: str, path: str) -> str:
    """Relative to a layer, its numbers as stars."""
    return NUMBER.sub("*", name.removeprefix(f"{path}.").partition(".")[2])
