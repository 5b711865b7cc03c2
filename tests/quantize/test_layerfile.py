"""Hidden states on disk: what was written is what is read, and what was damaged is not taken for it."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bot.errors import EnvironmentProblem
from bot.quantize.layerfile import hidden_path, write_hidden


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("blocks", [1, 2, 5, 100])
def test_read_is_what_was_written(dtype: torch.dtype, blocks: int, tmp_path: Path) -> None:
    states = torch.randn(5, 3, 4).to(dtype)
    path = hidden_path(tmp_path, 0)
    hidden = write_hidden(path, torch.split(states, 2))
    assert write_hidden(tmp_path / "whole", [states]) == hidden
    assert (hidden.shape, hidden.peak) == ((5, 3, 4), float(states.abs().max()))
    parts = list(hidden.read(path, blocks=blocks))
    assert torch.equal(torch.cat(parts), states)
    assert {len(part) for part in parts[:-1]} <= {blocks}


def test_one_changed_bit_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "states"
    hidden = write_hidden(path, [torch.ones(2, 3, 4)])
    assert hidden.is_at(path)
    content = bytearray(path.read_bytes())
    content[17] ^= 1
    path.write_bytes(content)
    assert not hidden.is_at(path)
    assert not hidden.is_at(tmp_path / "nowhere")


def test_a_number_that_is_none_is_the_peak(tmp_path: Path) -> None:
    states = torch.ones(2, 3, 4)
    states[1, 2, 3] = float("nan")
    assert math.isnan(write_hidden(tmp_path / "states", torch.split(states, 1)).peak)


def test_nothing_is_left_of_what_could_not_be_written(tmp_path: Path) -> None:
    def parts() -> Iterator[Tensor]:
        yield torch.ones(2, 3, 4)
        raise OSError(28, os.strerror(28))

    with pytest.raises(EnvironmentProblem, match="No space left"):
        write_hidden(tmp_path / "states", parts())
    assert not list(tmp_path.iterdir())
