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
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from bot.checkpoint.config import open_config
from bot.checkpoint.reader import Checkpoint
from bot.evaluate.metrics import evaluate
from bot.quantize.artifact import quantize
from bot.records import Calibration, Details, Recipe, WatchEntry, no_progress
from bot.watch.layers import choose_linears, layers_from_headers, model_types
from bot.watch.sizing import search_bytes
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
# A layer with hidden 4,096 made smaller eight times, and 65,536 tokens: weights grow with the square of the width.
WIDE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}
# CUDA's take a tensor of the CPU too: copies, and indices.
_TWO_DEVICES = {
    "aten::copy_",
    "aten::index.Tensor",
    "aten::index_put_",
    "aten::index_put",
    "aten::_index_put_impl_",
}


class _Memory:
    """What the tensors there take, as torch.cuda.max_memory_allocated counts it."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._now = self.peak = 0

    def count(self, held: Tensor) -> None:
        storage = held.untyped_storage()
        key = storage._cdata  # tensors that share memory have the same
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


_memory = _Memory()


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
        _memory.count(held)
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            # As with the kernels of a GPU, its scores take no memory.
            plain = pytree.tree_map_only(Elsewhere, lambda leaf: leaf.held, (args, kwargs or {}))
            return Elsewhere(func(*plain[0], **plain[1]))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

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
    blocks = tiny_models.random_blocks(4, 32)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        with available():
            record = quantize(
                source,
                out,
                layers=Path(name) / "layers",
                recipe=Recipe(method=method),
                blocks=blocks,
                calibration=tiny_models.calibration_set(blocks),
                trust_remote_code=False,
                progress=no_progress,
                device=str(DEVICE),
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


def memory_there(source: Path) -> dict[str, int]:
    """The peak of quantizing the model in source, in bytes, and what the plan says of it."""
    blocks = tiny_models.random_blocks(16, 512)
    checkpoint = Checkpoint(source)
    _, config = open_config(source)
    found = Details(config=config, tensors=tuple(checkpoint.tensors.values()))
    layers = layers_from_headers(config, found.tensors, model_types()[config["model_type"]])
    samples, seq_len = blocks.shape
    asked = WatchEntry(
        repo_id="local/source", target="local/out", calibration=Calibration(samples=samples, seq_len=seq_len)
    )
    with tempfile.TemporaryDirectory() as name, available():
        quantize(
            source,
            Path(name) / "out",
            layers=Path(name) / "layers",
            recipe=Recipe(),
            blocks=blocks,
            calibration=tiny_models.calibration_set(blocks),
            trust_remote_code=False,
            progress=no_progress,
            device=str(DEVICE),
        )
    return {"peak": _memory.peak, "plan": search_bytes(found, choose_linears(layers, Recipe()), asked)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("case", nargs="+", metavar="TYPE:METHOD")
    parser.add_argument("--memory", action="store_true", help="of wide layers, beside what the plan says")
    asked = parser.parse_args()
    with available():
        try:
            torch.ones(3).to(DEVICE) + torch.ones(3)
        except RuntimeError as error:
            print(json.dumps({"two_devices": str(error)}))
    for case in asked.case:
        model_type, _, method = case.partition(":")
        with tempfile.TemporaryDirectory() as name:
            sizes = WIDE if asked.memory else SETTINGS
            source = tiny_models.build(model_type, Path(name), dtype=torch.bfloat16, **sizes)
            found = memory_there(source) if asked.memory else quantized_there(source, method)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
