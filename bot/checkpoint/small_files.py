"""The files beside the weights that an artifact takes over from upstream, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

from bot.checkpoint.config import with_chat_template
from bot.checkpoint.repo_files import CHAT_TEMPLATE, TOKENIZER_CONFIG, is_code, is_companion, is_vocabulary
from bot.checkpoint.writer import replacing, writing


def is_carried(path: str, *, trust_remote_code: bool) -> bool:
    """Whether an artifact takes over the file with this path in the model's folder. config.json is edited."""
    return is_vocabulary(path) or is_companion(path) or (trust_remote_code and is_code(path))


def carry_small_files(source: Path, out: Path, *, trust_remote_code: bool) -> tuple[str, ...]:
    """Copy them into out and return their paths. Python files only when the entry trusts them.

    Where upstream has `chat_template.jinja` and no `chat_template` in tokenizer_config.json, that one key is
    inserted: some servers read only it. Raises UpstreamError when that file is not valid JSON.
    """
    paths = tuple(
        sorted(
            path.relative_to(source).as_posix()
            for path in [*source.glob("*"), *source.glob("additional_chat_templates/*")]
            if path.is_file()
            and is_carried(path.relative_to(source).as_posix(), trust_remote_code=trust_remote_code)
        )
    )
    for path in paths:
        target = out / path
        with writing(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as file, (source / path).open("rb") as original:
            shutil.copyfileobj(original, file)
    _insert_chat_template(source, out)
    return paths


def _insert_chat_template(source: Path, out: Path) -> None:
    template, config = source / CHAT_TEMPLATE, source / TOKENIZER_CONFIG
    if not template.is_file() or not config.is_file():
        return
    edited = with_chat_template(config.read_bytes(), template.read_bytes(), where=str(config))
    with replacing(out / TOKENIZER_CONFIG) as file:
        file.write(edited)
