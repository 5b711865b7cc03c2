"""Upload: the files of some folders as blobs of a repo, before the commit. Progress is reported in bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import CommitOperationAdd, HfApi

from bot.errors import EnvironmentProblem
from bot.files import file_sha256
from bot.hub.access import request_or_raise
from bot.records import OnBytes, Progress, byte_counter, ignore_bytes


class Upload(CommitOperationAdd):
    """Reports the bytes that huggingface_hub reads of the file while it sends it by LFS.

    hf_xet opens the path itself and reports nothing when progress bars are off, so there a file counts when it is
    complete.
    """

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(path_in_repo=name, path_or_fileobj=path)
        self.path = path
        self.on_bytes: OnBytes = ignore_bytes
        self._sent = 0

    @contextmanager
    def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:
        with super().as_file() as file:
            read = file.read

            def counted_read(size: int = -1, /) -> bytes:
                data = read(size)
                self.report(file.tell())
                return data

            # As huggingface_hub's tqdm_stream_file does: its retries need a real file object, which can seek.
            file.read = counted_read  # type: ignore[method-assign]
            yield file

    def report(self, position: int) -> None:
        """position: how much was sent; smaller than before when huggingface_hub sends a part again."""
        self.on_bytes(position - self._sent)
        self._sent = position


def uploads_of(folders: Sequence[Path], paths: Collection[str], what: str, progress: Progress) -> list[Upload]:
    """The files at these paths of the folders, by path, each hashed: their sha256 is their name in LFS."""
    found = {
        path.relative_to(folder).as_posix(): path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }
    uploads = [Upload(name, found[name]) for name in sorted(found.keys() & set(paths))]
    count = byte_counter(progress, what, _size_bytes(uploads))
    for item in uploads:
        # huggingface_hub would hash the file itself, without progress.
        item.upload_info.sha256 = bytes.fromhex(file_sha256(item.path, count))
    return uploads


def send(api: HfApi, target: str, uploads: Sequence[Upload], progress: Progress) -> None:
    """Raises PublishError without permission, and EnvironmentProblem when a file cannot be read."""
    count = byte_counter(progress, f"upload {target}", _size_bytes(uploads))
    for item in uploads:
        item.on_bytes = count
        request = partial(api.preupload_lfs_files, target, [item], free_memory=False)
        try:
            request_or_raise(target, f"upload {item.path_in_repo}", request)
        except OSError as error:
            raise EnvironmentProblem(
                f"{target}: cannot send {item.path_in_repo}: {error.strerror or error}",
                hint="Check this machine's disk, then run it again: it resumes.",
            ) from None
        # Small files are sent with the commit, and blobs that the Hub has already are not sent.
        item.report(item.upload_info.size)


def _size_bytes(uploads: Sequence[Upload]) -> int:
    return sum(item.upload_info.size for item in uploads)
