"""Text files, JSON lines, parquet files and built-in text as a stream of documents."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path
from typing import IO, Any, Final, cast

import pyarrow.parquet as pq

from bot.calibration import builtin, stdlib
from bot.calibration.conversations import (
    Reason,
    Row,
    conversation_of,
    messages_without_surrogates,
    text_of,
    without_surrogates,
)
from bot.calibration.sources import ROW_SUFFIXES, TEXT_SUFFIXES, local_path, split_files, suffix_of
from bot.errors import QuantizationError, reason_of, untrusted_input
from bot.files import file_sha256
from bot.records import CHAT_COLUMNS, OnBytes, Progress, TextSource, byte_counter, ignore_bytes, no_progress

# A long text is cut into passages of about this many characters, some 1,000 tokens, so that 64k tokens of
# calibration come from sixty places and not from one long chapter.
PASSAGE_CHARACTERS: Final = 4096
DEFAULT_COLUMNS: Final = ("text", *CHAT_COLUMNS)
LANGUAGE_COLUMNS: Final = ("language", "lang")
_LANGUAGE: Final = re.compile(r"[A-Za-z0-9_-]{1,35}")  # the card lists them
_ROWS_AT_ONCE: Final = 1024  # as Python objects in memory; a row may hold a whole conversation


# A pinned data set cannot be edited.
OTHER_DATA: Final = "Choose another `column`, `split` or data set."


class UnreadableFileError(QuantizationError):
    """A file that its owner has to write again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A passage of text, or a conversation of {role, content}. origin: file and place, for error messages.

    reason: why a row is no conversation that can be used; it has neither text nor messages then. parts_left_out:
    pictures and the like; replaced_characters: halves of broken surrogate pairs. is_builtin: of the package, so
    that its user cannot correct it. reserve: to be drawn when the others are used up.
    """

    text: str = ""
    messages: tuple[Row, ...] = ()
    reason: Reason | None = None
    parts_left_out: int = 0
    replaced_characters: int = 0
    language: str | None = None
    is_builtin: bool = False
    reserve: bool = False
    origin: str = ""

    @property
    def content(self) -> str:
        """The text alone: see text_of."""
        return text_of(self.messages) if self.messages else self.text


def read(
    source: TextSource, folder: Path, *, split: stdlib.Split = "calibrate", progress: Progress = no_progress
) -> Iterator[Document]:
    """The documents of a source in file order, streamed; `split` is for builtin text alone.

    folder: what local_path() is relative to. Raises QuantizationError for anything that is not readable text.
    """
    path = local_path(source)
    if path is None:
        return _read_builtin(source, split)
    if source.dataset is not None:
        return _read_dataset(source, folder / path, progress)
    if not (folder / path).is_file():
        pulled = source.sha256 is not None
        raise QuantizationError(
            f"text file {source.label} does not exist" + (f": {folder / path}" if pulled else ""),
            hint="Pull the job again." if pulled else "Check its path; it must be a file.",
        )
    _check_pin(source, folder / path)
    count = byte_counter(progress, f"reading {source.label}", (folder / path).stat().st_size)
    return read_file(folder / path, label=source.label, column=source.column, on_bytes=count)


def read_file(
    path: Path, *, label: str, column: str | None = None, on_bytes: OnBytes = ignore_bytes
) -> Iterator[Document]:
    """One local file by its suffix: text in passages, or rows of text or chat messages.

    on_bytes: called with bytes of the file, compressed as it is, while it is read.
    """
    suffix = suffix_of(path.name)
    if suffix in TEXT_SUFFIXES:
        return _read_text(path, label, on_bytes)
    if suffix == ".parquet":
        return _from_rows(_parquet_rows(path, label, column, on_bytes), column)
    if suffix in ROW_SUFFIXES:
        return _from_rows(_json_rows(path, label, on_bytes), column)
    raise QuantizationError(
        f"{label}: cannot read {suffix or 'a file without suffix'}",
        hint=f"Use one of {', '.join((*TEXT_SUFFIXES, *ROW_SUFFIXES))}.",
    )


def _read_builtin(source: TextSource, split: stdlib.Split) -> Iterator[Document]:
    for number, item in enumerate(builtin.texts(source.builtin or "", split), start=1):
        origin = f"{source.label}, text {number}"
        document = Document(messages=item.messages, reserve=item.reserve, is_builtin=True, origin=origin)
        if item.messages:
            yield document
        else:
            lines = item.text.splitlines(keepends=True)
            yield from (replace(document, text=passage) for passage in _passages(lines))


def _read_dataset(source: TextSource, folder: Path, progress: Progress) -> Iterator[Document]:
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = split_files(paths, source.split)
    if not names:
        raise QuantizationError(
            f"{source.label}: no {' or '.join(ROW_SUFFIXES)} file of split {source.split!r} in {folder}",
            hint="Check `split` against the data set's files.",
        )
    count = byte_counter(
        progress, f"reading {source.label}", sum((folder / name).stat().st_size for name in names)
    )
    for name in names:
        label = f"{source.label}/{name}"
        try:
            yield from read_file(folder / name, label=label, column=source.column, on_bytes=count)
        except UnreadableFileError as error:
            raise QuantizationError(error.message, hint=OTHER_DATA) from error


def _check_pin(source: TextSource, path: Path) -> None:
    if source.sha256 is None:
        return
    found = file_sha256(path)
    if found != source.sha256:
        raise QuantizationError(
            f"{source.label}: sha256 {found[:12]}… is not the planned {source.sha256[:12]}…",
            hint="The file changed after planning; plan again.",
        )


def _read_text(path: Path, label: str, on_bytes: OnBytes) -> Iterator[Document]:
    for number, passage in enumerate(_passages(_lines(path, label, on_bytes)), start=1):
        yield Document(text=passage, origin=f"{label}, passage {number}")


def _lines(path: Path, label: str, on_bytes: OnBytes) -> Iterator[str]:
    number = counted = 0
    try:
        with path.open("rb") as file:
            content = gzip.GzipFile(fileobj=file) if path.name.endswith(".gz") else file
            text = io.TextIOWrapper(cast(IO[bytes], content), encoding="utf-8-sig")
            for number, line in enumerate(text, start=1):
                if "\0" in line:
                    raise UnreadableFileError(f"{label}:{number}: binary content", hint="Use UTF-8 text.")
                if number % _ROWS_AT_ONCE == 0:
                    on_bytes(file.tell() - counted)
                    counted = file.tell()
                yield line
            on_bytes(file.tell() - counted)
    except UnicodeDecodeError as error:
        raise UnreadableFileError(
            f"{label}: not UTF-8 text after line {number}: {error.reason}", hint="Convert it to UTF-8."
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UnreadableFileError(f"{label}: broken gzip file: {error}", hint="Compress it again.") from error


def _passages(lines: Iterable[str]) -> Iterator[str]:
    """Whole lines up to PASSAGE_CHARACTERS each; only a line longer than that is cut inside."""
    passage = ""
    for line in lines:
        for start in range(0, len(line), PASSAGE_CHARACTERS):
            part = line[start : start + PASSAGE_CHARACTERS]
            if passage and len(passage) + len(part) > PASSAGE_CHARACTERS:
                yield passage
                passage = ""
            passage += part
    if passage.strip():
        yield passage


def _json_rows(path: Path, label: str, on_bytes: OnBytes) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(_lines(path, label, on_bytes), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        # Also for a number of thousands of digits: https://docs.python.org/3/library/stdtypes.html#int-max-str-digits
        except (ValueError, RecursionError) as error:
            too_deep = isinstance(error, RecursionError)
            reason = "nested too deeply" if too_deep else getattr(error, "msg", None) or reason_of(error)
            raise UnreadableFileError(
                f"{label}:{number}: broken JSON: {reason}", hint="Each line must be one whole JSON object."
            ) from error
        if not isinstance(row, dict):
            raise UnreadableFileError(
                f"{label}:{number}: a {type(row).__name__}, not an object",
                hint='Each line must be an object such as {"text": "…"}.',
            )
        yield f"{label}:{number}", row


def _parquet_rows(path: Path, label: str, column: str | None, on_bytes: OnBytes) -> Iterator[tuple[str, Row]]:
    def broken(reason: str) -> UnreadableFileError:
        return UnreadableFileError(f"{label}: broken parquet file: {reason}", hint="Write it again.")

    with untrusted_input(broken):
        size_bytes = path.stat().st_size
        with pq.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in LANGUAGE_COLUMNS]
            columns.append(_column_of(file.schema_arrow.names, column, label))
            number = counted = 0
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{label}, row {number}", row
                done = size_bytes * number // file.metadata.num_rows
                on_bytes(done - counted)
                counted = done


def _from_rows(rows: Iterator[tuple[str, Row]], column: str | None) -> Iterator[Document]:
    for continues, values in groupby(_values(rows, column), key=_continues):
        if continues:
            yield from _running_text(values)
        else:
            yield from chain.from_iterable(map(_documents_of, values))


def _values(rows: Iterator[tuple[str, Row]], column: str | None) -> Iterator[Document]:
    """The uncut content of each row. An empty row is no document."""
    for origin, row in rows:
        name = _column_of(list(row), column, origin)
        language = next((row[key] for key in LANGUAGE_COLUMNS if isinstance(row.get(key), str)), "")
        document = Document(language=language if _LANGUAGE.fullmatch(language) else None, origin=origin)
        value = row[name]
        if isinstance(value, str):
            yield replace(document, text=value)
        elif isinstance(value, list):
            yield _with_messages(document, value)
        elif value is not None:
            raise QuantizationError(
                f"{origin}: column {name!r} holds a {type(value).__name__}",
                hint="Calibration takes text, or a list of {role, content} messages.",
            )


def _with_messages(document: Document, value: list[Any]) -> Document:
    conversation = conversation_of(value)
    try:
        messages, replaced = messages_without_surrogates(conversation.messages)
    except RecursionError:
        raise UnreadableFileError(
            f"{document.origin}: nested too deeply", hint="Messages hold text, not trees of lists."
        ) from None
    return replace(
        document,
        messages=messages,
        reason=conversation.reason,
        parts_left_out=conversation.parts_left_out,
        replaced_characters=replaced,
    )


def _continues(value: Document) -> tuple[str | None] | None:
    """Data sets such as wikitext have one row per line of text, with its line end: such rows are joined."""
    is_line = _is_text(value) and (value.text.endswith("\n") or not value.text)
    return (value.language,) if is_line else None


def _is_text(value: Document) -> bool:
    return not value.messages and value.reason is None


def _running_text(values: Iterator[Document]) -> Iterator[Document]:
    first = next(values)
    lines = (line for value in chain((first,), values) for line in value.text.splitlines(keepends=True))
    yield from _with_passages(first, lines)


def _documents_of(value: Document) -> Iterator[Document]:
    if _is_text(value):
        yield from _with_passages(value, value.text.splitlines(keepends=True))
    else:
        yield value


def _with_passages(document: Document, lines: Iterable[str]) -> Iterator[Document]:
    for passage in _passages(lines):
        text, replaced = without_surrogates(passage)
        yield replace(document, text=text, replaced_characters=replaced)


def _column_of(names: list[str], column: str | None, origin: str) -> str:
    wanted = DEFAULT_COLUMNS if column is None else (column,)
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise QuantizationError(
            f"{origin}: no column {' or '.join(map(repr, wanted))}",
            hint=f"Name the column with `column`; there are {', '.join(names) or 'none'}.",
        )
    return found
