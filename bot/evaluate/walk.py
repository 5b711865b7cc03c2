"""A model over all tokens, layer by layer: one layer is in memory, however many there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bot.checkpoint.layerwise import capture_layer_inputs, logits_after, moved, outputs_of, run_layer
from bot.checkpoint.reader import Checkpoint
from bot.checkpoint.skeleton import (
    Read,
    Skeleton,
    build_skeleton,
    decoder_layers,
    drop,
    fill,
    read_ahead,
    source_names,
)

_TOKENS_AT_ONCE = 16_384  # in one forward pass of a layer
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """A model whose layers have seen all tokens, ready to tell the logits.

    states: what its last layer gave, [blocks, seq_len, hidden], on the CPU; outputs: as logits_after wants it.
    """

    skeleton: Skeleton
    device: torch.device
    states: Tensor
    outputs: int

    @property
    def vocabulary(self) -> int:
        return int(self.skeleton.model.config.get_text_config().vocab_size)

    def logits(self, blocks: slice) -> Tensor:
        """Float [blocks, seq_len, vocabulary], on the device."""
        states = self.states[blocks].to(self.device)
        return logits_after(self.skeleton.model, self.skeleton.layers, states, self.outputs)


def skeleton_of(source: Checkpoint, *, read: Read, dtype: torch.dtype, trust_remote_code: bool) -> Skeleton:
    """The source's architecture. read: its tensors, or the artifact's under the same names.

    Raises UnsupportedModelError or UpstreamError when config.json and the weights do not belong together.
    """
    folder: Path = source.folder
    model = build_skeleton(folder, dtype=dtype, trust_remote_code=trust_remote_code)
    names = source_names(model, source.tensors, where=folder)
    path, layers = decoder_layers(model)
    return Skeleton(model=model, path=path, layers=layers, names=names, read=read, dtype=dtype)


@torch.no_grad()
def walk(skeleton: Skeleton, tokens: Tensor, *, device: torch.device, step: Callable[[], None]) -> Walked:
    """tokens: int64 [blocks, seq_len]. step: called after each layer."""
    fill(skeleton.model, skeleton.tensors_before(), device=_CPU)
    captured = capture_layer_inputs(skeleton.model, skeleton.layers, tokens)
    drop(skeleton.model)
    states, outputs = captured.hidden, 0
    blocks = max(1, _TOKENS_AT_ONCE // tokens.shape[1])
    reads = (partial(skeleton.layer_tensors, index) for index in range(len(skeleton.layers)))
    for index, tensors in enumerate(read_ahead(reads)):
        layer, arguments = skeleton.layers[index], moved(captured.arguments[index], device=device)
        fill(layer, tensors, device=device)
        outputs = outputs_of(layer(states[:1].to(device), **arguments))
        for start in range(0, len(states), blocks):
            part = slice(start, start + blocks)
            states[part] = run_layer(layer, states[part], arguments, blocks=blocks).to(_CPU)
        drop(layer)
        step()
    fill(skeleton.model, skeleton.tensors_after(), device=device)
    return Walked(skeleton=skeleton, device=device, states=states, outputs=outputs)
