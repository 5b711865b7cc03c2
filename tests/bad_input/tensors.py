"""Tensors in a weight file: their header, dtypes and shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.bad_input.case import Accepted, Case, Change, Kind, Place, Refused
from tests.bad_input.stored import (
    EMBEDDING,
    FIRST,
    config,
    converted,
    framed,
    weights,
    with_raw,
)
from tests.support.small_sandbox import WEIGHTS


def _many_tensors() -> bytes:
    """250,000 tensors without values, in a header of 18 MB."""
    entry = '"model.layers.0.mlp.experts.%d.gate":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}'
    return framed(("{" + ",".join(entry % number for number in range(250_000)) + "}").encode())


def _planned(
    name: str, report: str, files: dict[str, Change], right: Refused | Accepted, *, alone: bool = False
) -> Case:
    return Case(
        name=name, report=report, kind=Kind.WEIGHTS, place=Place.PLAN, files=files, right=right, alone=alone
    )


def _entry(dtype: str, shape: list[Any], *offsets: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


_DTYPES = (
    _planned(
        "unused-tensor-of-a-new-dtype",
        "",
        {WEIGHTS: with_raw({"model.scale": _entry("F8_E8M0", [4], 0, 4)})},
        Accepted(),
    ),
    _planned(
        "unused-tensor-of-four-bits", "", {WEIGHTS: with_raw({"model.codes": _entry("F4", [8], 0, 4)})}, Accepted()
    ),
    _planned(
        "unused-complex-tensor", "", {WEIGHTS: with_raw({"rope.freqs": _entry("C64", [2], 0, 16)})}, Accepted()
    ),
    _planned(
        "unused-frequencies-of-an-older-version",
        "mlx-examples#305",
        {
            WEIGHTS: with_raw(
                {
                    f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": _entry(
                        "F32", [32], 128 * layer, 128 * layer + 128
                    )
                    for layer in (0, 1)
                }
            )
        },
        Accepted(),
    ),
    _planned(
        "quantized-to-a-new-dtype-already",
        "",
        {
            "config.json": config(quantization_config={"quant_method": "mxfp4"}),
            WEIGHTS: with_raw({"model.scale": _entry("F8_E8M0", [4], 0, 4)}),
        },
        Refused(4, names="mxfp4", says=("quantized already",), never=("damaged", "dtype")),
    ),
    _planned(
        "a-linear-of-eight-bits",
        "",
        {WEIGHTS: weights({FIRST: converted(FIRST, np.int8)})},
        Refused(4, names=FIRST.removesuffix(".weight"), says=("I8",)),
    ),
    _planned(
        "a-linear-of-sixty-four-bits",
        "",
        {WEIGHTS: weights({FIRST: converted(FIRST, np.float64)})},
        Refused(4, names=FIRST.removesuffix(".weight"), says=("F64",)),
    ),
    _planned(
        "a-dtype-that-is-none",
        "",
        {WEIGHTS: with_raw({"model.scale": _entry("F12\x1b[31m", [4], 0, 4)})},
        Refused(3, names=WEIGHTS, says=("model.scale",)),
    ),
)

_HEADERS = (
    _planned(
        "header-of-250000-tensors",
        "",
        {WEIGHTS: _many_tensors},
        Refused(3, names=WEIGHTS, says=("tensors",)),
        alone=True,
    ),
    _planned(
        "header-larger-than-the-format-allows",
        "safetensors#668",
        {WEIGHTS: framed(b"{}", length=132_095_296)},
        Refused(3, names=WEIGHTS, says=("132095296",)),
    ),
    _planned(
        "a-key-twice-in-the-header",
        "safetensors#401",
        {WEIGHTS: framed(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},' * 2 + b'"b":{}}', b"\1")},
        Refused(3, names=WEIGHTS),
    ),
    _planned(
        "two-names-for-the-same-bytes",
        "safetensors#586",
        {WEIGHTS: with_raw({"first": _entry("U8", [4], 0, 4), "second": _entry("U8", [4], 0, 4)})},
        Refused(3, names=WEIGHTS, says=("second", "overlaps")),
    ),
    _planned(
        "more-values-than-bytes",
        "mlx#3363",
        {WEIGHTS: with_raw({"large": _entry("F32", [1000, 1000], 0, 4)})},
        Refused(3, names=WEIGHTS, says=("large",)),
    ),
    _planned(
        "sides-whose-product-overflows",
        "",
        {WEIGHTS: with_raw({"large": _entry("F32", [2**32, 2**32, 2**32], 0, 4)})},
        Refused(3, names=WEIGHTS, says=("large",)),
    ),
    _planned(
        "a-side-below-zero",
        "",
        {WEIGHTS: with_raw({"odd": _entry("U8", [-2, -2], 0, 4)})},
        Refused(3, names=WEIGHTS, says=("odd",)),
    ),
    _planned(
        "a-tensor-without-values",
        "modelaudit#1607",
        {WEIGHTS: with_raw({"scaled_fp8": _entry("F8_E4M3", [0], 0, 0)})},
        Accepted(),
    ),
    _planned(
        "metadata-of-numbers",
        "",
        {WEIGHTS: with_raw({}, metadata={"step": 7})},
        Refused(3, names=WEIGHTS, says=("__metadata__",)),
    ),
    _planned("no-metadata", "mlx#743", {WEIGHTS: weights()}, Accepted()),
    _planned("nested-too-deeply", "", {WEIGHTS: framed(b"[" * 100_000)}, Refused(3, names=WEIGHTS)),
    _planned(
        "a-name-with-escape-sequences",
        "",
        {WEIGHTS: with_raw({"\x1b[2Jgone\n::error::x": _entry("U8", [4], 0, 3)}, size_bytes=4)},
        Refused(3, names=WEIGHTS),
    ),
)

_SHAPES = (
    _planned(
        "more-rows-than-the-vocabulary",
        "transformers#16479",
        {"config.json": config(vocab_size=2050)},
        Refused(3, names=EMBEDDING, says=("config.json",)),
    ),
    _planned(
        "a-layer-less-than-the-config-says",
        "",
        {"config.json": config(num_hidden_layers=3)},
        Refused(3, names="model.layers.2.", says=("missing",)),
    ),
    _planned("a-layer-more-than-the-config-says", "", {"config.json": config(num_hidden_layers=1)}, Accepted()),
)

CASES: tuple[Case, ...] = (*_DTYPES, *_HEADERS, *_SHAPES)
