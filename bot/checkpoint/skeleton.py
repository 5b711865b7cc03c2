"""A model without its weights, loaded one part at a time, so memory does not grow with depth.

The architecture is transformers' own, built on the meta device (https://docs.pytorch.org/docs/stable/meta.html).
The tensors of a part are read from the checkpoint by offset, assigned, and unloaded when the part is done.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from bot.errors import EnvironmentProblem, UnsupportedModelError, UpstreamError
from bot.records import TensorInfo

Read = Callable[[str], Tensor]  # the source's name of a tensor -> the tensor, on the CPU
Names = Mapping[str, str]  # the model's name of a tensor -> the source's
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """model: without weights. layers: its decoder layers; path: of their list in the model.

    names: the source's name for each tensor of the model that the source has. read: reads such a tensor. dtype:
    what its floats are converted to.
    """

    model: Any
    path: str
    layers: nn.ModuleList
    names: Names
    read: Read
    dtype: torch.dtype

    def layer_tensors(self, index: int) -> dict[str, Tensor]:
        """Read the tensors of one layer, by the layer's own names."""
        return self._read(_sources(self.layers[index], f"{self.path}.{index}", self.names))

    def tensors_before(self) -> dict[str, Tensor]:
        """Read everything outside the layers except an untied output embedding."""
        return self._read(self._outside(self.model.get_input_embeddings(), self.model.get_output_embeddings()))

    def tensors_after(self) -> dict[str, Tensor]:
        """Read everything outside the layers except an untied input embedding."""
        return self._read(self._outside(self.model.get_output_embeddings(), self.model.get_input_embeddings()))

    def _outside(self, kept: nn.Module | None, skipped: nn.Module | None) -> dict[str, str]:
        without = self._sources_of(skipped) - self._sources_of(kept)
        return {
            key: source
            for key, source in _sources(self.model, "", self.names).items()
            if not key.startswith(f"{self.path}.") and source not in without
        }

    def _sources_of(self, part: nn.Module | None) -> set[str]:
        path = next((name for name, module in self.model.named_modules() if module is part), None)
        return set() if part is None or path is None else set(_sources(part, path, self.names).values())

    def _read(self, sources: Mapping[str, str]) -> dict[str, Tensor]:
        # Tied tensors have one source, and share their memory.
        values = {source: self.read(source) for source in dict.fromkeys(sources.values())}
        values = {
            name: value.to(self.dtype) if value.is_floating_point() else value for name, value in values.items()
        }
        return {key: values[source] for key, source in sources.items()}


def open_skeleton(
    folder: Path,
    tensors: Mapping[str, TensorInfo],
    *,
    read: Read,
    dtype: torch.dtype,
    trust_remote_code: bool,
) -> Skeleton:
    """The model of a source folder. tensors: the source's; read: reads one of them, or a substitute of that name.

    Raises UnsupportedModelError or UpstreamError when config.json and the tensors do not match.
    """
    model = empty_model(folder, dtype=dtype, trust_remote_code=trust_remote_code)
    names = source_names(model, tensors, where=folder)
    path, layers = decoder_layers(model)
    return Skeleton(model=model, path=path, layers=layers, names=names, read=read, dtype=dtype)


def empty_model(folder: Path, *, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """A causal language model in eval mode whose parameters have shapes but no values; its buffers have both.

    Raises UnsupportedModelError when transformers cannot build it from the folder's config.json.
    """
    transformers.utils.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
        # A config may ask for kernels that this machine does not have.
        config._attn_implementation = None
        with init_empty_weights(include_buffers=False):
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=trust_remote_code
            )
    except MemoryError as error:
        raise EnvironmentProblem(
            f"{folder}: the model does not fit into memory",
            hint="Use a machine with more memory; `awq-bot plan` shows how much.",
        ) from error
    # The config, and with trust_remote_code the code, are untrusted: any exception is about them.
    except Exception as error:
        raise UnsupportedModelError(
            f"{folder}: transformers {transformers.__version__} cannot load it: {_first_line(error)}",
            hint="Look at config.json: does the model need its own code (trust_remote_code)?",
        ) from error
    model.config.use_cache = False
    model.requires_grad_(False)
    return model.eval()


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The path of the list that holds the decoder layers, and the list.

    Raises UnsupportedModelError when no list is as long as config.json says.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise UnsupportedModelError(
        f"{type(model).__name__}: no list of {count} decoder layers", hint="Put it on `hold:` on the watchlist."
    )


def source_names(model: Any, tensors: Mapping[str, TensorInfo], *, where: Path) -> dict[str, str]:
    """The source's name for each tensor of the model, by transformers' rules for prefixes and renamed tensors.

    A tied tensor has the name of the one that it is tied to. Raises UnsupportedModelError for tensors that
    transformers merges from several, such as experts; UpstreamError for those that are missing.
    """
    names = _stored_names(model, tensors)
    for key, tied_to in model.all_tied_weights_keys.items():
        if tied_to in names:
            names[key] = names[tied_to]
    _check_complete(dict(model.named_parameters(remove_duplicate=False)), names, tensors, where=where)
    return names


def unused_tensors(model: Any, tensors: Mapping[str, TensorInfo]) -> frozenset[str]:
    """The source's tensors that the model does not use, such as the masks that older versions stored."""
    return frozenset(tensors) - frozenset(_stored_names(model, tensors).values())


def _stored_names(model: Any, tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """The model's name of each tensor that has a place in it -> the source's."""
    state = model.state_dict()
    renamings = [item for item in get_model_conversion_mapping(model) if isinstance(item, WeightRenaming)]
    names: dict[str, str] = {}
    for name in tensors:
        key, _ = rename_source_key(name, renamings, [], model.base_model_prefix, state)
        if name in state or key in state:
            names[name if name in state else key] = name
    return names


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], *, device: torch.device) -> None:
    """Assign tensors, by the module's own names, to its parameters; its computed buffers move to device too."""
    # Moved before they are parameters, and each once, so that tied tensors stay tied.
    moved = {id(value): value.to(device) for value in tensors.values()}
    module.load_state_dict({key: moved[id(value)] for key, value in tensors.items()}, strict=False, assign=True)
    for child in module.modules():
        for key, buffer in child.named_buffers(recurse=False):
            if not buffer.is_meta:
                setattr(child, key, buffer.to(device))


def unload(module: nn.Module) -> None:
    """Parameters become shapes without values again; computed buffers stay. The memory goes back to the system."""
    for child in module.modules():
        for key, parameter in child.named_parameters(recurse=False):
            setattr(child, key, nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False))
    # glibc would keep freed memory in fragments, more with each layer: see malloc_trim(3).
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def read_ahead(reads: Iterable[Callable[[], Item]]) -> Iterator[Item]:
    """The results in order; the next one is read while the caller works on the one before."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        pending = None
        for read in reads:
            following = pool.submit(read)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def _sources(module: nn.Module, path: str, names: Names) -> dict[str, str]:
    """A module's own names for its tensors -> the source's. path: the module's in the model."""
    return {key: names[full] for key in module.state_dict() if (full := f"{path}.{key}" if path else key) in names}


def _check_complete(
    parameters: Mapping[str, nn.Parameter], names: Names, tensors: Mapping[str, TensorInfo], *, where: Path
) -> None:
    missing = [key for key in parameters if key not in names]
    reshaped = [key for key in names if key in parameters and tensors[names[key]].shape != parameters[key].shape]
    if experts := [key for key in (*missing, *reshaped) if ".experts." in key]:
        raise UnsupportedModelError(
            "transformers holds its experts as one tensor, which AutoAWQ does not quantize",
            hint=f"The tensor is {experts[0]}.",
        )
    for kind, keys in (("missing", missing), ("mismatched", reshaped)):
        if keys:
            shown = json.dumps(sorted(keys)[:4])[1:-1]
            raise UpstreamError(
                f"{where}: {len(keys)} {kind} keys: {shown}",
                hint="The weights do not match this config.json, or the upload is not complete.",
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
