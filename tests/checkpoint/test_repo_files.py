import json
from pathlib import Path

import pytest

from bot.checkpoint.repo_files import carry_small_files, is_safe_path, is_small_file, is_terms
from bot.errors import UpstreamError

CARRIED = {
    **dict.fromkeys(("tokenizer.json", "vocab.json", "special_tokens_map.json", "added_tokens.json"), b"{}"),
    **dict.fromkeys(("LICENSE", "License-Model.md", "Notice", "ACCEPTABLE_USE_POLICY.md"), b"text"),
    "preprocessor_config.json": b"text",
    "tokenizer_config.json": b'{\n    "chat_template": "{{ x }}",\n    "eos": "</s>"\n}\n',
    "tokenizer.model": b"\0\1",
    "merges.txt": b"a b\r\n",
    "generation_config.json": b'{"do_sample": false, "temperature": 0.0}',
    "additional_chat_templates/tool.jinja": b"{{ y }}",
}
LEFT = {
    **dict.fromkeys(("model.safetensors", "tokenizer.safetensors", "pytorch_model.bin"), b"weights"),
    **dict.fromkeys(("README.md", "config.json", "modeling_x.py", "figure.png", "original/tokenizer.model"), b"x"),
    **dict.fromkeys(("license.png", "docs/LICENSE", "docs/agreement.md"), b"x"),
}


def source_with(folder: Path, files: dict[str, bytes]) -> tuple[Path, Path]:
    source, out = folder / "source", folder / "out"
    out.mkdir()
    for name, content in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return source, out


def test_small_files_are_upstreams_bytes(tmp_path: Path) -> None:
    source, out = source_with(tmp_path, CARRIED | LEFT)
    carried = carry_small_files(source, out, trust_remote_code=False)
    assert carried == tuple(sorted(CARRIED))
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()} == CARRIED


@pytest.mark.parametrize(
    "path",
    [
        *("LICENSE", "license.txt", "License.md", "LICENCE", "LICENSE-MODEL", "LICENSE_CODE"),
        *("MODEL_LICENSE", "MODEL_LICENSE.pdf", "LICENSE-2.0", "LICENSE_v1.1.html", "COPYING"),
        *("COPYING.LESSER", "Notice", "NOTICE.txt", "NOTICE.rst", "THIRD_PARTY_NOTICES.md", "UNLICENSE"),
        *("EULA.rtf", "ThirdPartyNotices.txt", "ACKNOWLEDGEMENTS", "USE_POLICY", "USE_POLICY.md"),
        *("Use_Policy", "USAGE_POLICY", "ACCEPTABLE_USE_POLICY.md", "TERMS.md", "Terms_of_Use.pdf"),
        *("AUP.md", "PATENTS", "Tongyi Qianwen LICENSE AGREEMENT", "Community License for Lab 2 Model.pdf"),
        "模型社区许可协议.pdf",
    ],
)
def test_licences_notices_and_policies_are_recognized_whatever_their_name(path: str) -> None:
    assert is_terms(path, size_bytes=10_000_000)
    assert not is_terms(path, size_bytes=10_000_001)
    assert not is_terms(f"docs/{path}", size_bytes=1)


@pytest.mark.parametrize(
    "path",
    [
        *("license.png", "LICENSE.PNG", "license.svg", "LICENSE.py", "notice.ipynb", "NOTICE.safetensors"),
        *("license.bin", "license.gguf", "LICENSE.pt", "license.zip", "license.tar.gz", "license.model"),
        *("terms.json", "policy.pkl", "notice.parquet", "README.md", ".license", "determs.txt"),
    ],
)
def test_pictures_weights_and_code_are_no_licences(path: str) -> None:
    assert not is_small_file(path, size_bytes=1)


def test_a_planned_file_is_carried_under_any_name(tmp_path: Path) -> None:
    source, out = source_with(tmp_path, CARRIED | LEFT)
    carried = carry_small_files(source, out, trust_remote_code=False, planned=("docs/agreement.md", "LICENSE"))
    assert set(carried) == {*CARRIED, "docs/agreement.md"}
    assert (out / "docs/agreement.md").read_bytes() == b"x"


@pytest.mark.parametrize("path", ["L" * 256, "é" * 128, "docs/" + "L" * 256, "\ud800", "a\0b"], ids=len)
def test_a_name_that_no_disk_takes_is_not_safe(path: str) -> None:
    assert is_safe_path("é" * 127)
    assert not is_safe_path(path)


def test_code_is_carried_only_when_it_is_trusted(tmp_path: Path) -> None:
    source, out = source_with(tmp_path, LEFT)
    assert carry_small_files(source, out, trust_remote_code=True) == ("modeling_x.py",)


def test_a_template_of_its_own_is_inserted_and_nothing_else_changes(tmp_path: Path) -> None:
    template = '{%- for m in messages %}\n"é"\t{{ m["content"] }}{% endfor %}'
    config = b'{\n  "eos_token": "<|im_end|>",\n  "model_max_length": 1E30\n}\n'
    source, out = source_with(
        tmp_path, {"chat_template.jinja": template.encode(), "tokenizer_config.json": config}
    )
    carry_small_files(source, out, trust_remote_code=False)

    written = (out / "tokenizer_config.json").read_bytes()
    assert json.loads(written)["chat_template"] == template
    assert written.startswith(config[:-3])
    assert written.endswith(b"\n}\n")
    assert (out / "chat_template.jinja").read_text() == template


def test_a_template_that_is_there_is_left_alone(tmp_path: Path) -> None:
    files = CARRIED | {"chat_template.jinja": b"{{ other }}"}
    source, out = source_with(tmp_path, files)
    carry_small_files(source, out, trust_remote_code=False)
    assert (out / "tokenizer_config.json").read_bytes() == CARRIED["tokenizer_config.json"]


def test_a_tokenizer_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    source, out = source_with(tmp_path, {"chat_template.jinja": b"x", "tokenizer_config.json": b"{"})
    with pytest.raises(UpstreamError, match=r"tokenizer_config\.json: not valid JSON"):
        carry_small_files(source, out, trust_remote_code=False)
