"""Git object ids, and which files are large files (LFS) by `.gitattributes`.

https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

REGULAR_MAX_BYTES = 10 * 1024 * 1024

_COMMON = """
*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx
*.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite
*.tgz *.wasm *.xz *.zip *.zst *tfevents*
"""
_DATASET_ONLY = """
*.lz4 *.mds *.pcm *.sam *.raw *.aac *.flac *.mp3 *.ogg *.wav *.bmp *.gif *.png *.tiff *.jpg *.jpeg *.webp
*.mp4 *.webm
"""
_SUFFIX = " filter=lfs diff=lfs merge=lfs -text"


def object_id(kind: str, content: bytes) -> str:
    header = f"{kind} {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def blob_id_of_chunks(size: int, pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """What git stores in place of a large file: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def tree_ids(blob_ids: Mapping[str, str]) -> dict[str, str]:
    """path → tree id of every folder (`""` is the root), from the blob ids of the files."""
    folders: dict[str, dict[str, tuple[str, str]]] = {"": {}}
    for path, blob_id in blob_ids.items():
        parent, _, name = path.rpartition("/")
        while parent and parent not in folders:
            folders[parent] = {}
            parent = parent.rpartition("/")[0]
        folders[path.rpartition("/")[0]][name] = ("100644", blob_id)
    ids: dict[str, str] = {}
    for folder in sorted(folders, key=lambda path: (path.count("/"), path), reverse=True):
        if folder:
            ids[folder] = _tree_id(folders[folder])
            parent, _, name = folder.rpartition("/")
            folders[parent][name] = ("40000", ids[folder])
    ids[""] = _tree_id(folders[""])
    return ids


def commit_id(*, tree: str, parent: str | None, author: str, timestamp_s: int, title: str, message: str) -> str:
    who = f"{author} <{author}@users.noreply.localhost> {timestamp_s} +0000"
    lines = [f"tree {tree}", *([f"parent {parent}"] if parent else []), f"author {who}", f"committer {who}"]
    text = "\n".join(lines) + "\n\n" + "\n\n".join(part for part in (title, message) if part) + "\n"
    return object_id("commit", text.encode())


def default_gitattributes(repo_type: str) -> bytes:
    """The `.gitattributes` that the Hub adds to a new repo."""
    patterns = (_COMMON + (_DATASET_ONLY if repo_type == "dataset" else "")).split()
    return "".join(f"{pattern}{_SUFFIX}\n" for pattern in patterns).encode()


def with_tracked(content: bytes, paths: Iterable[str]) -> bytes:
    """The `.gitattributes` with a line for each of these paths added, as the Hub writes them."""
    text = content.decode("utf-8", "replace")
    if text and not text.endswith("\n"):
        text += "\n"
    return (text + "".join(f"{path.replace(' ', '[[:space:]]')}{_SUFFIX}\n" for path in paths)).encode()


def is_tracked(path: str, gitattributes: bytes) -> bool:
    """Whether the last pattern that matches says `filter=lfs`."""
    tracked = False
    for pattern, is_lfs in _rules(gitattributes):
        if pattern.fullmatch(path):
            tracked = is_lfs
    return tracked


def is_large(path: str, *, size: int, sample: bytes, gitattributes: bytes) -> bool:
    """sample: the first bytes of the content; huggingface_hub sends 512."""
    if size == 0:
        # Object storage refuses empty uploads, so empty files are always regular.
        return False
    return size > REGULAR_MAX_BYTES or is_tracked(path, gitattributes) or not _is_text(sample)


def _tree_id(entries: Mapping[str, tuple[str, str]]) -> str:
    # Git sorts folders as if their names ended in a slash.
    def order(item: tuple[str, tuple[str, str]]) -> bytes:
        name, (mode, _) = item
        return f"{name}/".encode() if mode == "40000" else name.encode()

    content = b"".join(
        f"{mode} {name}\0".encode() + bytes.fromhex(entry_id)
        for name, (mode, entry_id) in sorted(entries.items(), key=order)
    )
    return object_id("tree", content)


def _is_text(sample: bytes) -> bool:
    if b"\0" in sample:
        return False
    # A sample may end in the middle of a character.
    for cut in range(4):
        try:
            sample[: len(sample) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return True
    return False


@lru_cache(maxsize=64)
def _rules(gitattributes: bytes) -> tuple[tuple[re.Pattern[str], bool], ...]:
    rules = []
    for line in gitattributes.decode("utf-8", "replace").splitlines():
        pattern, *attributes = line.split() or [""]
        if not pattern or pattern.startswith("#"):
            continue
        if "filter=lfs" in attributes:
            rules.append((_compile(pattern), True))
        elif "-filter" in attributes or "!filter" in attributes:
            rules.append((_compile(pattern), False))
    return tuple(rules)


def _compile(pattern: str) -> re.Pattern[str]:
    """A pattern as in gitignore: without a slash it matches at any depth; `**` crosses folders, `*` does not."""
    anchored = "/" in pattern
    pattern = pattern.replace("[[:space:]]", " ").lstrip("/")
    translated = ""
    position = 0
    while position < len(pattern):
        for token, regex in (("**/", "(?:.*/)?"), ("**", ".*"), ("*", "[^/]*"), ("?", "[^/]")):
            if pattern.startswith(token, position):
                translated += regex
                position += len(token)
                break
        else:
            translated += re.escape(pattern[position])
            position += 1
    return re.compile(translated if anchored else f"(?:.*/)?{translated}")
