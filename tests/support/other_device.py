"""A device beside the CPU on any machine, to run what is written for a GPU where there is none.

Its tensors lie in the CPU's memory and say that they do not: as on a GPU, an operation on tensors of two devices
is an error. PyTorch has one place in a process for such a device:
https://docs.pytorch.org/tutorials/advanced/privateuseone.html

    python -m tests.support.other_device TYPE:METHOD...    quantize tiny models on it; figures as JSON lines
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from bot.evaluate.metrics import evaluate
from bot.quantize import artifact
from bot.records import Recipe, no_progress
from tests.support import tiny_models

_setup_privateuseone_for_python_backend("elsewhere")
DEVICE = torch.device("elsewhere:0")
SETTINGS = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "max_position_embeddings": 64,
    "num_experts": 2,
}
# CUDA's take a tensor of the CPU too: copies, and indices.
_TWO_DEVICES = {
    "aten::copy_",
    "aten::index.Tensor",
    "aten::index_put_",
    "aten::index_put",
    "aten::_index_put_impl_",
}


class Elsewhere(Tensor):
    """held: the values, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # a disabled one in torch's class
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        assert isinstance(value, Elsewhere)
        base: Any = torch._C.TensorBase
        base.data.__set__(self, value)
        self.held = value.held

    # Of a subclass, C++ gives neither.
    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"a tensor on {DEVICE} is no NumPy array; copy it to the CPU first")
        return self.held.numpy(force=True)


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def available() -> Any:
    """A context in which tensors can be made on the device and moved to it."""
    mode: Any = _Mode
    return mode()


def _run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """On the CPU; the results are where the arguments are, or where they were asked for."""
    flat, spec = pytree.tree_flatten((args, dict(kwargs)))
    there = {id(leaf.held): leaf for leaf in flat if isinstance(leaf, Elsewhere)}
    here = [leaf for leaf in flat if isinstance(leaf, Tensor) and not isinstance(leaf, Elsewhere)]
    if there and any(leaf.dim() for leaf in here) and func.name().removesuffix(".default") not in _TWO_DEVICES:
        shapes = [tuple(leaf.shape) for leaf in flat if isinstance(leaf, Tensor)]
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, shapes {shapes}")
    asked = kwargs.get("device")
    moved = asked is not None and (torch.device(asked) == DEVICE) != bool(there)
    plain = [
        leaf.held
        if isinstance(leaf, Elsewhere)
        else torch.device("cpu")
        if isinstance(leaf, torch.device)
        else leaf
        for leaf in flat
    ]
    output = func(*(unflattened := pytree.tree_unflatten(plain, spec))[0], **unflattened[1])

    def result(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or moved == bool(there):
            return leaf.clone() if moved and isinstance(leaf, Tensor) else leaf
        if moved:
            leaf = leaf.clone()  # on the CPU a move to the CPU shares memory
        return there.get(id(leaf)) if id(leaf) in there else Elsewhere(leaf)

    return args[0] if func.name() == "aten::copy_" else pytree.tree_map(result, output)


def quantized_there(source: Path, method: Any) -> dict[str, Any]:
    """Quantize and measure the model in source on the device, and measure the same artifact on the CPU."""
    artifact.best_device = lambda: DEVICE
    blocks = tiny_models.random_blocks(4, 32)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        with available():
            record = artifact.quantize(
                source,
                out,
                layers=Path(name) / "layers",
                recipe=Recipe(method=method),
                blocks=blocks,
                calibration=tiny_models.calibration_set(blocks),
                trust_remote_code=False,
                progress=no_progress,
            )
            there = _kl(source, out, device=str(DEVICE))
        return {
            "device": record.device,
            "kl": there,
            "kl_cpu": _kl(source, out, device="cpu"),
            "errors": [module.relative_error for module in record.modules],
            "errors_rounding": [module.relative_error_rounding for module in record.modules],
        }


def _kl(source: Path, out: Path, *, device: str) -> float:
    return evaluate(
        source,
        out,
        tokens=tiny_models.random_blocks(2, 32, seed=1),
        text_label="random",
        trust_remote_code=False,
        progress=no_progress,
        device=device,
    ).kl_mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("case", nargs="+", metavar="TYPE:METHOD")
    cases = parser.parse_args().case
    with available():
        try:
            torch.ones(3).to(DEVICE) + torch.ones(3)
        except RuntimeError as error:
            print(json.dumps({"two_devices": str(error)}))
    for case in cases:
        model_type, _, method = case.partition(":")
        with tempfile.TemporaryDirectory() as name:
            source = tiny_models.build(model_type, Path(name), dtype=torch.bfloat16, **SETTINGS)
            print(json.dumps(quantized_there(source, method)), flush=True)


if __name__ == "__main__":
    main()
