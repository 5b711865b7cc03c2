"""What a commit makes of the files before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bot.hub.local.errors import bad_request, entry_not_found
from bot.hub.local.names import check_path
from bot.hub.local.records import Delete, FileEntry, Operation, Put


def apply(files: Mapping[str, FileEntry], operations: Sequence[Operation]) -> dict[str, FileEntry]:
    result = dict(files)
    # Deletions first: a client that deletes a folder and fills it again in one commit means just that.
    for operation in operations:
        if isinstance(operation, Delete):
            path = check_path(operation.path.rstrip("/"))
            doomed = [name for name in result if name == path and not operation.is_folder]
            doomed += [name for name in result if name.startswith(f"{path}/") and operation.is_folder]
            if not doomed:
                raise entry_not_found("A file with this name doesn't exist")
            for name in doomed:
                del result[name]
    for operation in operations:
        if isinstance(operation, Put):
            result[check_path(operation.path)] = operation.entry
    _refuse_files_that_are_folders(result)
    return result


def _refuse_files_that_are_folders(files: Mapping[str, FileEntry]) -> None:
    for path in files:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in files:
                raise bad_request(f"{parent!r} cannot be both a file and a folder")
            parent = parent.rpartition("/")[0]
