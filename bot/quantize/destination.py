"""Where an artifact goes, and whether a folder that is already there may be replaced.

A folder named with --out is replaced only when nothing in it would be lost, so a record of what was written lies
beside it: in the folder it would be uploaded with the model. A job's folder may always be replaced.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bot.errors import WatchlistError
from bot.files import cannot_write, file_sha256, write_atomic
from bot.records import PublishedFile, from_json, to_json

_IN_FOLDER = ".awq-bot.json"  # where earlier versions had the record
_HINT = "Name another folder with --out, or delete this one first."


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The files written into a folder. source_sha256: over the source's weights and config.json."""

    source_sha256: str
    files: tuple[PublishedFile, ...]


def check_replaceable(out: Path) -> None:
    """Raises WatchlistError when out exists and is not an AWQ folder, cannot be replaced, or lies below a file."""
    if blocking := next((parent for parent in out.parents if parent.exists() and not parent.is_dir()), None):
        raise WatchlistError(f"{out}: {blocking} is not a folder", hint="Name another folder.")
    if out.is_symlink() or out.is_mount() or out.resolve() == Path.cwd():
        hint = "It is a link, a mount point or the current folder: name a folder inside it."
        raise WatchlistError(f"{out}: cannot be replaced as a whole", hint=hint)
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or _is_artifact(out))):
        raise WatchlistError(f"{out}: exists, and is not an AWQ folder", hint="Name another folder.")


def check_ours(out: Path, source_sha256: Callable[[], str]) -> None:
    """Raises WatchlistError when out holds anything but an artifact of this source, as it was written.

    source_sha256: called only when out is an artifact. Raises EnvironmentProblem when out cannot be written.
    """
    _check_writable(out)
    if not out.exists() or not any(out.iterdir()):
        return
    written = _record_of(out)
    if written is None:
        problem = "holds a quantized model that `awq-bot quantize` did not write"
    elif changed := _changed(out, written):
        problem = f"holds {changed}, which `awq-bot quantize` did not write"
    elif written.source_sha256 != source_sha256():
        problem = "was made from another model"
    else:
        return
    raise WatchlistError(f"{out}: {problem}", hint=_HINT)


def write_record(out: Path, written: Written) -> None:
    write_atomic(record_path(out), to_json(written).encode())


def record_path(out: Path) -> Path:
    out = out.absolute()
    return out.with_name(f".{out.name}{_IN_FOLDER}")


def _is_artifact(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and b'"quantization_config"' in config.read_bytes()


def _check_writable(out: Path) -> None:
    """Try it before hours of work, not after them."""
    place = next(parent for parent in out.absolute().parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise cannot_write(out, error, hint="Name a folder where you may write, with --out.") from error


def _record_of(folder: Path) -> Written | None:
    for path in (record_path(folder), folder / _IN_FOLDER):
        with contextlib.suppress(OSError, ValueError):  # missing, or damaged
            return from_json(Written, path.read_bytes())
    return None


def _changed(folder: Path, written: Written) -> str:
    """A file that is not in the record, or changed since; empty if there is none."""
    known = {file.path: file for file in written.files}
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()):
        name = path.relative_to(folder).as_posix()
        if name != _IN_FOLDER and (name not in known or not _is_unchanged(path, known[name])):
            return name
    return ""


def _is_unchanged(path: Path, file: PublishedFile) -> bool:
    # Weights are compared by size: no one edits them by hand, and hashing them takes minutes.
    same_size = not path.is_symlink() and path.stat().st_size == file.size_bytes
    return same_size and (path.suffix == ".safetensors" or file_sha256(path) == file.sha256)
