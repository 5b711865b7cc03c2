"""Which files of a model repo matter, and which an artifact carries over.

A change of weights, config or vocabulary is a new release. A change of the other files that a model needs
(tokenizer settings, chat template, licence) is a refresh without a GPU. All other files are ignored.
"""

from __future__ import annotations

import shutil
from fnmatch import fnmatchcase
from pathlib import Path

from bot.checkpoint.config import with_chat_template
from bot.files import atomic_file, disk_errors

CONFIG = "config.json"
SINGLE_WEIGHTS = "model.safetensors"
WEIGHT_INDEX = "model.safetensors.index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
CARD = "README.md"
GENERATION_CONFIG = "generation_config.json"
PROVENANCE = "provenance.json"
GITATTRIBUTES = ".gitattributes"  # written by the Hub: which files are LFS

# Vocabulary, under the names that tokenizers of different families use.
VOCABULARY = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.*",
    "tekken.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "*.tiktoken",
)
COMPANIONS = (
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE,
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    GENERATION_CONFIG,
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


def is_vocabulary(path: str) -> bool:
    return _matches(path, VOCABULARY)


def is_small_file(path: str) -> bool:
    return _matches(path, COMPANIONS)


def is_pickle(path: str) -> bool:
    return _matches(path, PICKLES)


def is_code(path: str) -> bool:
    return "/" not in path and path.endswith(".py")


def is_safe_path(path: str) -> bool:
    """Whether a path from a repo stays inside the folder it is written to, on any system."""
    parts = path.split("/")
    plain = all(part not in ("", ".", "..") for part in parts)
    return plain and not any(char in path for char in "\\\0:") and path.isprintable()


def is_carried(path: str, *, trust_remote_code: bool) -> bool:
    """Whether an artifact carries over the file with this path. config.json is not among them: it is edited."""
    return is_vocabulary(path) or is_small_file(path) or (trust_remote_code and is_code(path))


def carry_small_files(source: Path, out: Path, *, trust_remote_code: bool) -> tuple[str, ...]:
    """Copy the carried files into out and return their paths. trust_remote_code: Python files too.

    If upstream has `chat_template.jinja` and no `chat_template` in tokenizer_config.json, that key is inserted:
    some servers read only it. Raises UpstreamError when that file is not valid JSON.
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
        with disk_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as file, (source / path).open("rb") as original:
            shutil.copyfileobj(original, file)
    _insert_chat_template(source, out)
    return paths


def _insert_chat_template(source: Path, out: Path) -> None:
    template, config = source / CHAT_TEMPLATE, source / TOKENIZER_CONFIG
    if not template.is_file() or not config.is_file():
        return
    edited = with_chat_template(config.read_bytes(), template.read_bytes(), where=str(config))
    with atomic_file(out / TOKENIZER_CONFIG) as file:
        file.write(edited)


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    # fnmatch lets `*` cross slashes; a pattern without one means the top folder only.
    return any(fnmatchcase(path, pattern) and path.count("/") == pattern.count("/") for pattern in patterns)
