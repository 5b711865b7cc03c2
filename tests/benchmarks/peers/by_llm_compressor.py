"""llm-compressor's AWQ, GPTQ, or AWQ's scales followed by GPTQ; with its defaults, but for the group size.

Fixed, as it does not run otherwise: AWQ pins memory for a GPU, also where there is none.
"""

from __future__ import annotations

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM

from tests.benchmarks.peers.apart import Request, answer


def quantize(request: Request) -> None:
    IntermediatesCache.pin_memory = lambda *_: None
    # The preset W4A16_ASYM, which has groups of 128.
    weights = QuantizationArgs(
        num_bits=4, type="int", symmetric=False, strategy="group", group_size=request.group_size
    )
    to = {
        "config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)},
        "ignore": ["lm_head"],
    }
    recipes = {
        "awq": lambda: [AWQModifier(), QuantizationModifier(**to)],
        "gptq": lambda: [GPTQModifier(**to)],
        "awq+gptq": lambda: [AWQModifier(), GPTQModifier(**to)],
    }
    model = AutoModelForCausalLM.from_pretrained(request.source, dtype="float32")
    blocks = request.blocks.tolist()
    rows = {"input_ids": blocks, "attention_mask": [[1] * len(block) for block in blocks]}
    oneshot(
        model=model,
        dataset=Dataset.from_dict(rows),
        recipe=recipes[request.algorithm](),
        max_seq_length=len(blocks[0]),
        num_calibration_samples=len(blocks),
    )
    model.save_pretrained(request.out, save_compressed=True)


if __name__ == "__main__":
    answer(("llmcompressor", "compressed-tensors"), quantize)
