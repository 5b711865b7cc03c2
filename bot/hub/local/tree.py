"""A commit's files as the Hub lists them: files and folders, with the ids that git gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bot.hub.local import gitobjects
from bot.hub.local.records import Commit, FileEntry


def tree_items(
    files: Mapping[str, FileEntry], *, folder: str = "", recursive: bool = False
) -> list[dict[str, Any]]:
    """Everything below `folder`, or its direct children only, sorted by path; folders come as items too."""
    prefix = f"{folder}/" if folder else ""
    folder_ids = gitobjects.tree_ids({path: entry.blob_id for path, entry in files.items()})
    items = [_file_item(path, entry) for path, entry in files.items()]
    items += [
        {"type": "directory", "oid": tree_id, "size": 0, "path": path}
        for path, tree_id in folder_ids.items()
        if path
    ]
    below = [item for item in items if item["path"].startswith(prefix)]
    if not recursive:
        below = [item for item in below if "/" not in item["path"][len(prefix) :]]
    return sorted(below, key=lambda item: str(item["path"]))


def last_changes(history: Iterable[Commit], paths: Sequence[str]) -> dict[str, Commit]:
    """For each path, file or folder, the latest commit that changed it. history: newest first."""
    changed: dict[str, Commit] = {}
    newer: Commit | None = None
    current: dict[str, str] = {}
    for commit in history:
        ids = _ids(commit)
        if newer is not None:
            for path in paths:
                if path not in changed and ids.get(path) != current.get(path):
                    changed[path] = newer
        newer, current = commit, ids
        if len(changed) == len(set(paths)):
            break
    if newer is not None:
        for path in paths:
            changed.setdefault(path, newer)
    return changed


def _ids(commit: Commit) -> dict[str, str]:
    blob_ids = {path: entry.blob_id for path, entry in commit.files.items()}
    return {**blob_ids, **gitobjects.tree_ids(blob_ids)}


def _file_item(path: str, entry: FileEntry) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "file", "oid": entry.blob_id, "size": entry.size_bytes, "path": path}
    if entry.is_lfs:
        pointer = gitobjects.lfs_pointer(entry.sha256, entry.size_bytes)
        item["lfs"] = {"oid": entry.sha256, "size": entry.size_bytes, "pointerSize": len(pointer)}
    return item
