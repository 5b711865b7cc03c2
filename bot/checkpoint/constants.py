"""What several stages, and the plan that predicts them, must agree on. No torch, so that planning can read it."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata
from typing import Final, Literal

# The AWQ GEMM layout: eight 4-bit integers to an int32.
BITS: Final = 4
PER_INT32: Final = 32 // BITS
PACKED_PARTS: Final = ("qweight", "qzeros", "scales")  # the tensors of a quantized linear

# dtypes by the names of the safetensors format: https://huggingface.co/docs/safetensors
FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})
SOURCE_FLOATS: Final = ("F16", "BF16", "F32")  # what a linear that can be quantized is stored in
ArtifactDtype = Literal["float16", "bfloat16"]
SAFETENSORS_NAMES: Final[dict[ArtifactDtype, str]] = {"float16": "F16", "bfloat16": "BF16"}

# By method. Increment one when the same recipe gives better weights: `requantize: outdated` then quantizes again,
# and layers that a job has finished are not used again.
QUANTIZER_VERSIONS: Final = {"awq+gptq": 4, "awq": 1}

# In one forward pass of a layer. With more a CPU takes longer, as the memory of large tensors is new each time.
TOKENS_AT_ONCE: Final = 4096
TASK_TOKENS: Final = 16_384  # of an lm-eval request; a longer one is cut at its start, as lm-eval does
# A layer is run on so many at once while its linears are quantized in turn: what they will read is kept.
CORRECTED_TOKENS: Final = 65_536
LOGITS_AT_ONCE: Final = 1 << 25  # of each model, while they are compared: 128 MiB in float32
# An expert that calibration reaches with fewer is given others of its layer's tokens too: on the trained mixture
# of the tests and a text of 512 tokens that lowers the KL divergence by 6 %.
EXPERT_TOKENS: Final = 1024
MIN_SAMPLES: Final = 16  # blocks of calibration tokens
MAX_SAMPLES: Final = 4096
MIN_SEQ_LEN: Final = 16  # tokens in a block
EVALUATION_SEQ_LEN: Final = 512  # tokens in a block, if the model reads so many at once
MIN_EVALUATION_BLOCKS: Final = 8  # of each source
MAX_EVALUATION_TOKENS: Final = 262_144

_TOOLS = ("torch", "transformers", "autoawq", "tokenizers", "safetensors")


@cache
def tool_versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on, and Python's; read without importing any of it."""
    installed = {name: metadata.version(name) for name in _TOOLS if _is_installed(name)}
    return installed | {"python": platform.python_version()}


def _is_installed(name: str) -> bool:
    return next(iter(metadata.distributions(name=name)), None) is not None
