"""AutoAWQ's own classes. On import it warns that it is deprecated, and here warnings are errors."""

import warnings

with warnings.catch_warnings(record=True):
    from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP
    from awq.models.base import TRANSFORMERS_AUTO_MAPPING_DICT
    from awq.modules.linear import WQLinear_GEMM
    from awq.quantize.quantizer import AwqQuantizer

__all__ = ["AWQ_CAUSAL_LM_MODEL_MAP", "TRANSFORMERS_AUTO_MAPPING_DICT", "AwqQuantizer", "WQLinear_GEMM"]
