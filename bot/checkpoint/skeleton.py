"""A model without its weights, loaded one part at a time, so memory does not grow with depth.

The tensors of a part are read from the checkpoint by offset, assigned, and unloaded when the part is done.
"""

from __future__ import annotations

import copy
import ctypes
import re
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bot.checkpoint.building import empty_model
from bot.checkpoint.config import parse_config
from bot.checkpoint.config_values import check_values
from bot.checkpoint.experts import separate_experts
from bot.checkpoint.matching import Equal, check_complete, tied
from bot.checkpoint.origins import Origin, Origins, Read, find_origins, read_values, separated
from bot.checkpoint.repo_files import CONFIG
from bot.errors import UnsupportedModelError, UpstreamError, untrusted_input
from bot.records import TensorInfo

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """model: without weights. layers: its decoder layers; path: of their list in the model.

    origins: of each tensor of the model that the source has. stored: the names that read takes. dtype: what floats
    are converted to. unread: paths of the modules that text does not reach, such as a vision tower.
    """

    model: Any
    path: str
    layers: nn.ModuleList
    origins: Origins
    stored: Container[str]
    read: Read
    dtype: torch.dtype
    unread: tuple[str, ...]

    def layer_tensors(self, index: int) -> dict[str, Tensor]:
        """Read the tensors of one layer, by the layer's own names."""
        return self._read(origins_inside(self.layers[index], f"{self.path}.{index}", self.origins))

    def tensors_before(self) -> dict[str, Tensor]:
        """Read everything outside the layers except an untied output embedding."""
        return self._read(self._outside(self.model.get_input_embeddings(), self.model.get_output_embeddings()))

    def tensors_after(self) -> dict[str, Tensor]:
        """Read everything outside the layers except an untied input embedding."""
        return self._read(self._outside(self.model.get_output_embeddings(), self.model.get_input_embeddings()))

    def name_of(self, path: str) -> str:
        """The stored name of a linear, without `.weight`. path: the linear's in the model."""
        return self.origins[f"{path}.weight"].name.removesuffix(".weight")

    def linears_outside(self) -> tuple[str, ...]:
        """Paths of the linears that text reaches and that are in no layer, but for the output embedding."""
        head = self.model.get_output_embeddings()
        return tuple(
            name
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear)
            and module is not head
            and not is_inside(name, (self.path, *self.unread))
        )

    def why_fixed(self, key: str) -> str | None:
        """Why an artifact cannot hold another value of this tensor, or its packed form; None where it can."""
        origin = self.origins[key]
        if self._shared[origin.name] > 1:
            return "stored once for several layers"
        if origin.name in self.stored or origin.part is not None:
            return None if origin.name.endswith((".weight", ".bias")) else "stored under a name without `.weight`"
        return "stored in another form"

    @cached_property
    def _shared(self) -> Counter[str]:
        """How many tensors of the layers are stored under each name."""
        inside = (key for key in self.origins if is_inside(key, (self.path,)))
        return Counter(self.origins[key].name for key in inside)

    def tensors_as_written(
        self, tensors: Mapping[str, TensorInfo], packed: Collection[str]
    ) -> dict[str, TensorInfo]:
        """The source's tensors in their order, but experts that the artifact packs one by one each for itself.

        packed: stored names of linears, without `.weight`.
        """
        replaced: dict[str, list[TensorInfo]] = {}
        for key, value in self.model.state_dict().items():
            origin = self.origins.get(key)
            if origin is not None and origin.part is not None and origin.name not in tensors:
                sources = origin.names(tensors)
                if origin.name.rpartition(".")[0] in packed:
                    info = TensorInfo(name=origin.name, dtype=tensors[sources[0]].dtype, shape=tuple(value.shape))
                    replaced.setdefault(sources[0], []).append(info)
                    for other in sources[1:]:
                        replaced.setdefault(other, [])
        return {info.name: info for name in tensors for info in replaced.get(name, [tensors[name]])}

    def _outside(self, kept: nn.Module | None, skipped: nn.Module | None) -> dict[str, Origin]:
        without = self._names_of(skipped) - self._names_of(kept)
        return {
            key: origin
            for key, origin in origins_inside(self.model, "", self.origins).items()
            if not is_inside(key, (self.path, *self.unread)) and origin.name not in without
        }

    def _names_of(self, part: nn.Module | None) -> set[str]:
        path = path_of(self.model, part)
        found = {} if part is None or path is None else origins_inside(part, path, self.origins)
        return {origin.name for origin in found.values()}

    def _read(self, origins: Origins) -> dict[str, Tensor]:
        # Tied tensors have one origin, and share their memory.
        values = read_values(origins, self.read, stored=self.stored)
        converted = {
            id(value): value.to(self._dtype_of(key)) if value.is_floating_point() else value
            for key, value in values.items()
        }
        return {key: converted[id(value)] for key, value in values.items()}

    def _dtype_of(self, key: str) -> torch.dtype:
        """Of a float of the model, as transformers loads it: it keeps some in float32, such as routers' biases."""
        kept = self._kept_float32
        return torch.float32 if kept is not None and kept.search(key) else self.dtype

    @cached_property
    def _kept_float32(self) -> re.Pattern[str] | None:
        # https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_utils.py: _get_dtype_plan
        names = set(self.model._keep_in_fp32_modules_strict or ())
        if self.dtype == torch.float16:
            names |= set(self.model._keep_in_fp32_modules or ())
        return re.compile("|".join(name.replace("*", ".*") for name in sorted(names))) if names else None


def open_skeleton(
    folder: Path,
    tensors: Mapping[str, TensorInfo],
    *,
    read: Read,
    dtype: torch.dtype,
    trust_remote_code: bool,
    stored: Container[str] | None = None,
    equal: Equal | None = None,
) -> Skeleton:
    """The model of a source folder. tensors: the source's.

    read: reads one of them, or a substitute of that name; stored: the names that it takes, if others than the
    source's. equal: whether two of the source's tensors have the same values; None where that cannot be read:
    then what config.json ties counts as equal. Raises UnsupportedModelError or UpstreamError when config.json and
    the tensors do not match.
    """
    config = _config_in(folder)
    if not (trust_remote_code and "auto_map" in config):
        check_values(config, tensors)
    model = empty_model(folder, config, stored=len(tensors), dtype=dtype, trust_remote_code=trust_remote_code)

    def refused(reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{folder}: {type(model).__name__} cannot be read layer by layer: {reason}")

    with untrusted_input(refused):
        # The conversions look at the model as transformers builds it.
        origins = find_origins(copy.deepcopy(model), tensors)
        origins = tied(origins, model.all_tied_weights_keys, tensors, equal)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        check_complete(parameters, origins, tensors, where=folder)
        path, layers = decoder_layers(model)
        return Skeleton(
            model=model,
            path=path,
            layers=layers,
            origins=separated(origins, separate_experts(model), tensors),
            stored=tensors if stored is None else stored,
            read=read,
            dtype=dtype,
            unread=modules_beside_text(model),
        )


def _config_in(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        return parse_config(path.read_bytes(), where=str(path))
    except OSError as error:
        raise UpstreamError(f"{path}: cannot be read: {error.strerror or error}") from None


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The path of the list that holds the text decoder's layers, and the list.

    Raises UnsupportedModelError when no list is as long as config.json says.
    """
    config = model.config.get_text_config()
    # LongCat-Flash counts two attentions to a layer.
    counts = [getattr(config, name, None) for name in ("num_hidden_layers", "num_layers")]
    inside = path_of(model, model.get_decoder()) or ""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    for count in counts:
        for found in (*(each for each in lists if is_inside(each[0], (inside,))), *lists):
            if len(found[1]) == count:
                return found
    raise UnsupportedModelError(
        f"{type(model).__name__}: no list of {counts[0]} decoder layers",
        hint="Put it on `hold:` on the watchlist.",
    )


def modules_beside_text(model: Any) -> tuple[str, ...]:
    """Paths of the modules that text does not reach: what stands beside the text decoder of a multimodal model."""
    if model.config.get_text_config() is model.config:
        return ()
    path, head = path_of(model, model.get_decoder()) or "", path_of(model, model.get_output_embeddings())
    return tuple(
        name
        for name, _ in model.named_modules()
        if name
        and is_inside(path, (name.rpartition(".")[0],))
        and not is_inside(path, (name,))
        and not is_inside(name, (path,))
        and not (head and is_inside(head, (name,)))
    )


def path_of(model: nn.Module, part: nn.Module | None) -> str | None:
    return next((name for name, module in model.named_modules() if module is part), None)


def is_inside(path: str, parents: Collection[str]) -> bool:
    """Whether the path is one of the parents, or inside of one. Everything is inside of ""."""
    return any(not parent or path == parent or path.startswith(f"{parent}.") for parent in parents)


def unused_tensors(origins: Origins, tensors: Mapping[str, TensorInfo]) -> frozenset[str]:
    """The source's tensors that the model does not use, such as the masks that older versions stored."""
    return frozenset(tensors).difference(*(origin.names(tensors) for origin in origins.values()))


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


def origins_inside(module: nn.Module, path: str, origins: Origins) -> dict[str, Origin]:
    """By a module's own names for its tensors. path: the module's in the model."""
    return {
        key: origins[full] for key in module.state_dict() if (full := f"{path}.{key}" if path else key) in origins
    }
