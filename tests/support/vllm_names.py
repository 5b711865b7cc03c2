"""Whether vLLM finds a place for every tensor of an AWQ folder, and a tensor for every parameter.

    python tests/support/vllm_names.py FOLDER

Runs in an environment with vLLM for CPU, without this project. It only loads, which needs no kernels. Prints JSON:
  unwritten: parameters, as vLLM names them, that got no weight or only a part of one
  unread: tensors of the folder that vLLM did not use
  error: what vLLM raised while it built the model or loaded it, and at which tensor; or null
Exits 1 and says so on stderr when one of them is not empty.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; the default is half of the memory
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # PyPI's is built for CUDA: on a CPU build of torch its operators are missing, so importing it fails. vLLM's
    # models of images import it; loading calls none of the operators.
    _operators: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]  # torch gives it no types
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUExpertsInt4
from vllm.model_executor.layers.fused_moe.oracle.int_wna16 import WNA16MoEBackend
from vllm.model_executor.layers.quantization import auto_awq
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models import registry

# Loading runs no kernel, and those for CPUs take fewer shapes and activations than those for GPUs.
auto_awq.choose_mp_linear_kernel = lambda *_, **__: CPUWNA16LinearKernel
auto_awq.select_wna16_moe_backend = lambda *_, **__: (WNA16MoEBackend.CPU, CPUExpertsInt4)
# A process of its own would import torchvision without the operators above.
registry._run_in_subprocess = lambda inspect: inspect()

# The parameters are loaded over each of these bytes; where the results differ, nothing was written.
FILLINGS = (0x35, 0x2A)


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives it no types
    """Which tensors were copied into another one, directly or after a calculation."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.names = {tensor.untyped_storage().data_ptr(): {name} for name, tensor in tensors.items()}
        self.read: set[str] = set()
        self._alive: list[Tensor] = []  # a storage that is freed could be given out again

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # Of a copy, only where it is from.
        given = args[1:] if func is torch.ops.aten.copy_.default else (args, kwargs)
        inputs = [value for value in tree_leaves(given) if isinstance(value, Tensor)]
        names = set().union(*(self.names.get(value.untyped_storage().data_ptr(), ()) for value in inputs))
        if not names:
            return result
        if func is torch.ops.aten.copy_.default:
            self.read |= names
        else:
            for value in tree_leaves(result):
                if isinstance(value, Tensor):
                    self.names.setdefault(value.untyped_storage().data_ptr(), set()).update(names)
                    self._alive.append(value)
        return result


def check(folder: str) -> dict[str, Any]:
    report: dict[str, Any] = {"unwritten": [], "unread": [], "error": None}
    try:
        config = EngineArgs(model=folder, enforce_eager=True, skip_tokenizer_init=True).create_engine_config()
        with set_current_vllm_config(config), tempfile.TemporaryDirectory() as store:
            init_distributed_environment(1, 0, Path(store, "store").as_uri(), 0, "gloo")
            ensure_model_parallel_initialized(1, 1)
            report |= _load(config)
    except Exception as error:
        report["error"] = str(error) or type(error).__name__
    return report


def _load(config: VllmConfig) -> dict[str, list[str]]:
    model = initialize_model(config)
    loader = get_model_loader(config.load_config)
    # In storages of their own: the tensors of one file share one.
    tensors = {name: value.clone() for name, value in loader.get_all_weights(config.model_config, model)}
    loaded = []
    with Reads(tensors) as reads:
        for filling in FILLINGS:
            _fill(model, filling)
            _load_weights(model, tensors)
            loaded.append({name: value.detach().clone() for name, value in model.named_parameters()})
    unwritten = [name for name, value in loaded[0].items() if not _same_bytes(value, loaded[1][name])]
    return {"unwritten": unwritten, "unread": sorted(tensors.keys() - reads.read)}


def _load_weights(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """vLLM takes one tensor after another; its assertions about shapes do not say which one they are about."""
    latest = ""

    def offered() -> Iterator[tuple[str, Tensor]]:
        nonlocal latest
        for latest in tensors:
            yield latest, tensors[latest]

    try:
        model.load_weights(offered())
    except Exception as error:
        raise ValueError(f"at {latest}: {type(error).__name__}: {error}") from error


def _fill(model: nn.Module, byte: int) -> None:
    for parameter in model.parameters():
        filled = torch.full((parameter.numel() * parameter.itemsize,), byte, dtype=torch.uint8)
        parameter.detach().copy_(filled.view(parameter.dtype).view(parameter.shape))


def _same_bytes(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.flatten().view(torch.uint8), right.flatten().view(torch.uint8))


def main(folder: str) -> None:
    report = check(folder)
    print(json.dumps(report))
    lists = {key: report[key] for key in ("unwritten", "unread") if report[key]}
    problems = [f"{len(names)} {key}: {', '.join(names[:8])}" for key, names in lists.items()]
    problems += [report["error"]] if report["error"] else []
    if problems:
        sys.exit(f"vLLM does not load {folder}: {'; '.join(problems)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
