"""GPTQModel's GPTQ with its defaults, but for the zero point. Its loader calls a CPU `cpu`, as its README does."""

from __future__ import annotations

import torch
from gptqmodel import GPTQModel, QuantizeConfig

from tests.benchmarks.peers.apart import Request, answer


def quantize(request: Request) -> None:
    config = QuantizeConfig(bits=4, group_size=request.group_size, sym=False, offload_to_disk=False, device="cpu")
    model = GPTQModel.load(request.source, config, dtype=torch.float32)
    rows = [{"input_ids": block, "attention_mask": [1] * len(block)} for block in request.blocks.tolist()]
    model.quantize(rows, batch_size=1)
    model.save(request.out)


if __name__ == "__main__":
    answer(("gptqmodel",), quantize)
