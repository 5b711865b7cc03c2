"""Which files of a model repo matter, and which an artifact carries over.

A change of weights, config or vocabulary is a new release. A change of the other files that a model needs
(tokenizer settings, chat template, licence) is a refresh without a GPU. All other files are ignored.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from bot.checkpoint.config import with_chat_template, without_own_code
from bot.files import atomic_file, disk_errors
from bot.records import HubFile

CONFIG = "config.json"
SINGLE_WEIGHTS = "model.safetensors"
WEIGHT_INDEX = "model.safetensors.index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
CARD = "README.md"
GENERATION_CONFIG = "generation_config.json"
PROVENANCE = "provenance.json"
SIGNATURE = "model.sig"  # as OpenSSF model signing calls it
PUBLIC_KEY = "model.pub"  # what a signature made with a key is checked with
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
# Those that are published with our edits, and config.json.
EDITED = (
    TOKENIZER_CONFIG,
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
)
COMPANIONS = (
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE,
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    GENERATION_CONFIG,
    *EDITED,
)
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")

# What a licence, notice or usage policy is called, in any case: MODEL_LICENSE, Third-Party Notices, Use_Policy.
_TERMS = re.compile(
    r"licen[cs]|copying|copyright|notice|acknowledge?ment|许可|协议"
    r"|(?<![a-z])(?:terms|policy|policies|eula|aup|agreement|patents)(?![a-z])",
    re.IGNORECASE,
)
# Of texts, never of pictures, code, data or weights; COPYING.LESSER, LICENSE-2.0.
_TEXT_SUFFIX = re.compile(
    r"md|markdown|txt|text|rst|html?|pdf|rtf|docx?|lesser|lib|apache|mit|bsd|[0-9]+", re.IGNORECASE
)
_MAX_NAME_BYTES = 255  # of a file or folder, on nearly every file system
_MAX_TERMS_BYTES = 10_000_000


def is_vocabulary(path: str) -> bool:
    return _matches(path, VOCABULARY)


def is_small_file(path: str, *, size_bytes: int) -> bool:
    return is_companion(path) or is_terms(path, size_bytes=size_bytes)


def is_companion(path: str) -> bool:
    """Settings and templates, as transformers names them."""
    return _matches(path, COMPANIONS)


def is_terms(path: str, *, size_bytes: int) -> bool:
    """A licence, notice or usage policy, judged by its name."""
    return "/" not in path and _TERMS.search(path) is not None and can_be_terms(path, size_bytes=size_bytes)


def can_be_terms(path: str, *, size_bytes: int) -> bool:
    """Whether a file that `license_link` names is carried, in a subfolder too: a text, and not the card."""
    is_hidden = any(part.startswith(".") for part in path.split("/"))
    is_ours = path.lower() == CARD.lower() or is_vocabulary(path)
    return _is_text(path) and not (is_hidden or is_ours) and size_bytes <= _MAX_TERMS_BYTES


def _is_text(path: str) -> bool:
    _, dot, suffix = path.rpartition("/")[2].rpartition(".")
    return not dot or _TEXT_SUFFIX.fullmatch(suffix) is not None


def is_pickle(path: str) -> bool:
    return _matches(path, PICKLES)


def is_code(path: str) -> bool:
    return "/" not in path and path.endswith(".py")


def code_left_out(files: Iterable[HubFile], *, trust_remote_code: bool) -> tuple[str, ...]:
    """The paths of the Python files that the artifact of these files does not have."""
    return () if trust_remote_code else tuple(file.path for file in files if is_code(file.path))


def is_safe_path(path: str) -> bool:
    """Whether a path from a repo stays inside the folder it is written to, on any system."""
    parts = path.split("/")
    plain = path.isprintable() and not any(char in path for char in "\\:")
    return plain and all(part not in ("", ".", "..") and len(part.encode()) <= _MAX_NAME_BYTES for part in parts)


def is_carried(path: str, *, size_bytes: int, trust_remote_code: bool) -> bool:
    """Whether an artifact carries over the file with this path. config.json is not among them: it is edited."""
    is_kept_code = trust_remote_code and is_code(path)
    return is_vocabulary(path) or is_small_file(path, size_bytes=size_bytes) or is_kept_code


def carry_small_files(
    source: Path, out: Path, *, trust_remote_code: bool, planned: Collection[str] = ()
) -> tuple[str, ...]:
    """Copy the carried files into out and return their paths. trust_remote_code: Python files too.

    planned: the small files of the job, which may have a licence under another name. Raises UpstreamError when one
    that is edited is not valid JSON.
    """
    found = (path for path in [*source.glob("*"), *source.glob("additional_chat_templates/*")] if path.is_file())
    sizes = {path.relative_to(source).as_posix(): path.stat().st_size for path in found}
    carried = (
        path
        for path, size_bytes in sizes.items()
        if is_carried(path, size_bytes=size_bytes, trust_remote_code=trust_remote_code)
    )
    paths = tuple(sorted({*carried, *(path for path in planned if (source / path).is_file())}))
    for path in paths:
        target = out / path
        with disk_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as file, (source / path).open("rb") as original:
            if path in EDITED:
                file.write(edited(source, path, trust_remote_code=trust_remote_code))
            else:
                shutil.copyfileobj(original, file)
    return paths


def edited(source: Path, path: str, *, trust_remote_code: bool) -> bytes:
    """The content of one of EDITED in the artifact.

    If upstream has `chat_template.jinja` and no `chat_template` in tokenizer_config.json, that key is inserted:
    some servers read only it. Without trust_remote_code, nothing refers to upstream's Python files.
    """
    content, where, template = (source / path).read_bytes(), str(source / path), source / CHAT_TEMPLATE
    if not trust_remote_code:
        content = without_own_code(content, where=where)
    if path == TOKENIZER_CONFIG and template.is_file():
        content = with_chat_template(content, template.read_bytes(), where=where)
    return content


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    # fnmatch lets `*` cross slashes; a pattern without one means the top folder only.
    return any(fnmatchcase(path, pattern) and path.count("/") == pattern.count("/") for pattern in patterns)
