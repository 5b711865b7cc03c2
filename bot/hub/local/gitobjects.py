"""Git's object ids, computed as git does, so that what clients compare is what they would find on the Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping


def object_id(kind: str, content: bytes) -> str:
    header = f"{kind} {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def blob_id_of_chunks(size: int, pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The small file that git holds in place of a large one."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def tree_ids(blob_ids: Mapping[str, str]) -> dict[str, str]:
    """path → id of every folder, the root being `""`, from the blob id of every file."""
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


def _tree_id(entries: Mapping[str, tuple[str, str]]) -> str:
    # Git sorts a folder as if its name ended in a slash.
    def order(item: tuple[str, tuple[str, str]]) -> bytes:
        name, (mode, _) = item
        return f"{name}/".encode() if mode == "40000" else name.encode()

    content = b"".join(
        f"{mode} {name}\0".encode() + bytes.fromhex(entry_id)
        for name, (mode, entry_id) in sorted(entries.items(), key=order)
    )
    return object_id("tree", content)
