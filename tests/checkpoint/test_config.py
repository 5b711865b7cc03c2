"""config.json and tokenizer_config.json are changed in one place, everything else stays as upstream wrote it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.checkpoint.config import artifact_config, parse_object, set_key, without_own_code
from bot.errors import UnsupportedModelError, UpstreamError
from bot.records import Recipe

UPSTREAM = b"""{
  "architectures": ["LlamaForCausalLM"],
  "rope_theta": 5e5,
  "rms_norm_eps": 1E-05,
  "torch_dtype": "bfloat16",
  "rope_scaling": {"factor": 8.0, "torch_dtype": "left alone"},
  "model_type": "llama", "note": "\\u00e9 \xc3\xa9"
}
"""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def converted(upstream: bytes, *, recipe: Recipe | None = None, **changes: Any) -> bytes:
    standard: dict[str, Any] = {
        "modules_to_not_convert": (),
        "artifact_dtype": "float16",
        "trust_remote_code": False,
    }
    return artifact_config(upstream, recipe=recipe or Recipe(), **standard | changes)


def test_only_dtype_and_quantization_config_change() -> None:
    listed = ("model.layers.3.mlp.gate",)
    written = converted(UPSTREAM, recipe=Recipe(group_size=64), modules_to_not_convert=listed)
    assert written == UPSTREAM.replace(b'"bfloat16"', b'"float16"').replace(
        b'\xc3\xa9"\n',
        b"""\xc3\xa9",
  "quantization_config": {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 64,
    "zero_point": true,
    "version": "gemm",
    "modules_to_not_convert": [
      "model.layers.3.mlp.gate"
    ]
  }
""",
    )


OWN = '"AutoConfig": "configuration_x.X"'
ELSEWHERE = '"AutoModelForCausalLM": "lab/code--modeling_x.X"'


@pytest.mark.parametrize(
    ("written", "left"),
    [
        (f'{{"a": 1,\n  "auto_map": {{{OWN}}},\n  "b": 2}}', '{"a": 1,\n  "b": 2}'),
        (f'{{"a": 1,\n  "auto_map": {{{OWN}}}\n}}', '{"a": 1\n}'),
        (f'{{"auto_map": {{{OWN}}} , "b": 2}}', '{"b": 2}'),
        (f'{{"auto_map": {{{OWN}}}}}', "{}"),
        ('{"auto_map": {"AutoTokenizer": ["tokenization_x.X", null]}, "b": 2}', '{"b": 2}'),
        ('{"auto_map": ["tokenization_x.X", null], "b": 2}', '{"b": 2}'),
        *((f'{{"auto_map": {value}, "b": 2}}', '{"b": 2}') for value in ("5", "null", '"x"', '{"AutoConfig": 5}')),
        (f'{{"auto_map": {{{OWN}, {ELSEWHERE}}}, "b": 2}}', f'{{"auto_map": {{{ELSEWHERE}}}, "b": 2}}'),
        (f'{{"auto_map": {{{ELSEWHERE}}}}}', f'{{"auto_map": {{{ELSEWHERE}}}}}'),
        ('{"text_config": {"auto_map": {}},  "b": 2}', '{"text_config": {"auto_map": {}},  "b": 2}'),
        ('{"a": "\\u00e9 é",  "b": 1E5}', '{"a": "\\u00e9 é",  "b": 1E5}'),
    ],
)
def test_what_names_python_files_of_the_same_repo_is_left_out(written: str, left: str) -> None:
    assert without_own_code(written.encode(), where="config.json").decode() == left


def test_what_names_python_files_stays_where_they_are_trusted() -> None:
    upstream = f'{{"auto_map": {{{OWN}}}, "dtype": "bfloat16"}}'.encode()
    assert b"configuration_x" in converted(upstream, trust_remote_code=True)
    assert b"auto_map" not in converted(upstream)


@pytest.mark.parametrize(
    ("upstream", "keys"),
    [
        (b'{"dtype": "bfloat16"}', {"dtype": "float16"}),
        (b'{"dtype": "a", "torch_dtype": "b"}', {"dtype": "float16", "torch_dtype": "float16"}),
        (b'{"model_type": "opt"}', {"model_type": "opt", "torch_dtype": "float16"}),
        (b"{}", {"torch_dtype": "float16"}),
    ],
)
def test_the_dtype_key_that_is_there_is_set(upstream: bytes, keys: dict[str, str]) -> None:
    config = json.loads(converted(upstream))
    assert config.pop("quantization_config")["modules_to_not_convert"] is None
    assert config == keys


@pytest.mark.parametrize(
    "upstream",
    [b'{"a": 1, "a": 1}', b'{"a": {"b": 1, "b": 2}}', b"[]", b"", b"\xff{}"],
)
def test_text_that_is_no_json_object_is_refused(upstream: bytes) -> None:
    with pytest.raises(UpstreamError, match=r"source/config\.json: "):
        converted(upstream, where="source/config.json")


def test_a_model_that_is_quantized_already_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="already quantized"):
        converted(b'{"quantization_config": {}}')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"a": 1}', b'{"a": 1, "k": "v"}'),
        (b'{\n\t"a": 1\n}', b'{\n\t"a": 1,\n\t"k": "v"\n}'),
        (b"\n{ }\n", b'\n{ "k": "v"}\n'),
        (b'{\r\n  "k" :  [1,\r\n 2] ,\r\n  "b":2\r\n}', b'{\r\n  "k" :  "v" ,\r\n  "b":2\r\n}'),
    ],
)
def test_set_key_keeps_every_other_byte(text: bytes, expected: bytes) -> None:
    assert set_key(text, "k", "v", where="x") == expected


@given(
    members=st.dictionaries(st.text(), JSON, max_size=4),
    key=st.text(),
    value=JSON,
    indent=st.sampled_from([None, 0, 2, "\t"]),
    escaped=st.booleans(),
)
def test_set_key_is_what_a_dict_would_do(
    members: dict[str, object], key: str, value: object, indent: int | str | None, escaped: bool
) -> None:
    text = json.dumps(members, indent=indent, ensure_ascii=escaped).encode("utf-8", "replace")
    members = json.loads(text)
    key = json.loads(json.dumps(key, ensure_ascii=False).encode("utf-8", "replace"))
    written = parse_object(set_key(text, key, value, where="x"), where="x")
    assert list(written) == list(members | {key: value})
    assert written == members | {key: value}
