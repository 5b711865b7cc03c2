"""Which files of a model repo mean what.

Three rows, as the project decides what counts as new: weights, config and vocabulary make a release; the other
files that a model needs to be loaded, prompted and licensed make a refresh; everything else means nothing.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

CONFIG = "config.json"
SINGLE_WEIGHTS = "model.safetensors"
WEIGHT_INDEX = "model.safetensors.index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
CARD = "README.md"
PROVENANCE = "provenance.json"

# spiece.model and friends are vocabulary under another name.
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
    "generation_config.json",
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


def is_companion(path: str) -> bool:
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


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    # fnmatch lets `*` cross slashes; a pattern without one means the top folder only.
    return any(fnmatchcase(path, pattern) and path.count("/") == pattern.count("/") for pattern in patterns)
