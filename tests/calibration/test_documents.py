"""Files of every kind as documents, and every way in which they can be unusable."""

import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bot.calibration import stdlib
from bot.calibration.documents import PASSAGE_CHARACTERS, read, read_file
from bot.errors import QuantizationError
from bot.records import TextSource

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Grüße 👋"}]


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def texts(path: Path, column: str | None = None) -> list[str]:
    return [document.text for document in read_file(path, label=path.name, column=column)]


def problem(path: Path, column: str | None = None) -> QuantizationError:
    with pytest.raises(QuantizationError) as caught:
        list(read_file(path, label=path.name, column=column))
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def test_a_text_file_is_cut_into_passages_at_line_ends_and_nothing_is_lost(tmp_path: Path) -> None:
    lines = [f"line {number} " + "x" * (number % 90) + "\n" for number in range(400)]
    path = tmp_path / "a.txt"
    # A byte order mark and the line ends of Windows do not change the text.
    path.write_bytes(b"\xef\xbb\xbf" + "".join(lines).replace("\n", "\r\n").encode())
    passages = texts(path)
    assert "".join(passages) == "".join(lines)
    assert len(passages) > 4
    assert all(len(passage) <= PASSAGE_CHARACTERS and passage.endswith("\n") for passage in passages)
    path.write_text("y" * (2 * PASSAGE_CHARACTERS + 5), encoding="utf-8")
    assert [len(passage) for passage in texts(path)] == [PASSAGE_CHARACTERS, PASSAGE_CHARACTERS, 5]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines_give_text_and_language(name: str, tmp_path: Path) -> None:
    rows = [{"text": "hello", "lang": "en"}, {"text": ""}, {"text": None}, {"text": "a\u2028b", "language": "fr"}]
    documents = list(read_file(write_rows(tmp_path / name, rows), label="a.jsonl"))
    assert [(document.text, document.language) for document in documents] == [("hello", "en"), ("a\u2028b", "fr")]
    assert documents[1].origin == "a.jsonl:4"


def test_chat_messages_are_taken_without_naming_the_column(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"messages": CHAT}])
    (document,) = read_file(path, label="a.jsonl")
    assert document.messages == tuple(CHAT)
    assert document.content == "Grüße 👋"


def test_a_row_that_is_no_conversation_is_a_document_that_says_why(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"messages": []}, {"messages": [{"role": "user"}]}, {"messages": None}]
    path = write_rows(tmp_path / "a.jsonl", [*rows, {"messages": CHAT}])
    found = [(document.reason, document.origin) for document in read_file(path, label="a.jsonl")]
    assert found == [("without messages", "a.jsonl:1"), ("without text", "a.jsonl:2"), (None, "a.jsonl:4")]


def test_sharegpt_conversations_are_taken_without_naming_the_column(tmp_path: Path) -> None:
    row = {"id": 7, "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}
    (document,) = read_file(write_rows(tmp_path / "a.jsonl", [row]), label="a.jsonl")
    assert [message["role"] for message in document.messages] == ["user", "assistant"]
    assert document.content == "Why?\nSo."


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_parts_are_read_alike_from_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    parts = [
        {"type": "text", "text": "What is"},
        {"type": "image", "text": None},
        {"type": "text", "text": "this?"},
    ]
    rows = [{"messages": [{"role": "user", "content": parts}]}]
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_rows(path, rows)
    (document,) = read_file(path, label="a")
    assert document.messages == ({"role": "user", "content": "What is\nthis?"},)
    assert document.parts_left_out == 1


def test_broken_surrogate_pairs_are_replaced_and_counted_where_they_are(tmp_path: Path) -> None:
    long = "x" * PASSAGE_CHARACTERS
    lines = [
        r'{"text": "a\ud83d b \ud83d\ude00 \u0000"}',
        r'{"messages": [{"role": "user", "content": "\ud83d"}], "lang": "\ud83d"}',
        json.dumps({"text": f"\ud83d{long}\n{long}"}),
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    documents = list(read_file(tmp_path / "a.jsonl", label="a.jsonl"))
    assert documents[0].text == "a\ufffd b \N{GRINNING FACE} \0"
    assert documents[1].messages[0]["content"] == "\ufffd"
    assert [document.replaced_characters for document in documents] == [1, 1, 1, 0, 0]
    assert documents[1].language is None


def test_parquet_gives_text_and_chats_from_the_named_column(tmp_path: Path) -> None:
    """A key that only some messages have is a column, empty for the others; no template is shown it."""
    path, talk = tmp_path / "a.parquet", [*CHAT, {"role": "tool", "content": "4", "name": "sum"}]
    pq.write_table(pa.table({"body": ["one", "two"], "talk": [talk, talk], "language": ["de", None]}), path)
    assert texts(path, "body") == ["one", "two"]
    documents = list(read_file(path, label="a.parquet", column="talk"))
    assert [document.messages for document in documents] == [tuple(talk)] * 2
    assert [document.language for document in documents] == ["de", None]


def test_rows_that_are_lines_of_a_text_are_read_as_that_text(tmp_path: Path) -> None:
    """As wikitext has them: headings, paragraphs and blank lines, each in a row of its own."""
    lines = ["", " = Title = \n", "", f"{'word ' * 400}\n", f"{'more ' * 600}\n", " = Next = \n"]
    rows: list[dict[str, Any]] = [{"text": line} for line in lines]
    rows += [{"text": "one whole text"}, {"text": "Ende\n", "lang": "de"}, {"text": "end\n", "lang": "en"}]
    found = texts(write_rows(tmp_path / "a.jsonl", rows))
    assert found == ["".join(lines[:4]), "".join(lines[4:]), "one whole text", "Ende\n", "end\n"]


def test_builtin_text_is_the_calibrate_split_whole_and_in_order(tmp_path: Path) -> None:
    documents = read(TextSource(builtin="stdlib"), tmp_path)
    assert "".join(document.text for document in documents) == "".join(stdlib.documents("calibrate"))


def test_a_data_set_is_read_from_its_folder_split_by_split(tmp_path: Path) -> None:
    folder = tmp_path / "owner--set@abc"
    (folder / "data").mkdir(parents=True)
    write_rows(folder / "data" / "train-00001-of-00002.jsonl", [{"text": "second"}])
    write_rows(folder / "data" / "train-00000-of-00002.jsonl", [{"text": "first"}])
    write_rows(folder / "data" / "test-00000-of-00001.jsonl", [{"text": "other"}])
    source = TextSource(dataset="owner/set", revision="abc", split="train")
    assert [document.text for document in read(source, tmp_path)] == ["first", "second"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (TextSource(dataset="owner/set", revision="abc", split="dev"), r"no .* file of split 'dev'"),
        (TextSource(file="notes.txt", sha256="00"), r"notes\.txt does not exist"),
        (TextSource(builtin="pile"), "unknown builtin text 'pile'"),
    ],
)
def test_source_that_is_not_there_is_an_error(source: TextSource, expected: str, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=expected):
        list(read(source, tmp_path))


def test_a_file_that_is_not_the_pinned_one_is_an_error(tmp_path: Path) -> None:
    pinned = hashlib.sha256(b"as planned\n").hexdigest()
    source = TextSource(file="notes.txt", sha256=pinned)
    (tmp_path / f"{pinned}.txt").write_bytes(b"as planned\n")
    assert [document.text for document in read(source, tmp_path)] == ["as planned\n"]
    (tmp_path / f"{pinned}.txt").write_bytes(b"edited\n")
    with pytest.raises(QuantizationError, match="is not the planned"):
        list(read(source, tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"text\nPK\x03\x04\x00\x00", "a.txt:2: binary content"),
        ("a.txt", "Grüße".encode("latin-1"), "not UTF-8"),
        ("a.jsonl", b'{"text": "fine"}\n\n{"text": "cut of\n', "a.jsonl:3: broken JSON"),
        pytest.param("a.jsonl", b"[" * 100_000 + b"\n", "a.jsonl:1", id="nested"),
        pytest.param(
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": "x", "a": ' + b"[" * 700 + b"]" * 700 + b"}]}\n",
            "a.jsonl:1: nested too deeply",
            id="nested message",
        ),
        pytest.param(
            "a.jsonl", b'{"text": ' + b"7" * 5000 + b"}\n", "a.jsonl:1: broken JSON: Exceeds", id="number"
        ),
        ("a.jsonl.gz", gzip.compress(b"x" * 5000, mtime=0)[:12] + b"\xff" * 30, "a.jsonl.gz: broken gzip file"),
    ],
)
def test_unreadable_content_is_an_error(name: str, content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert expected in problem(tmp_path / name).message


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        (["text"], None, "a.jsonl:1: a list, not an object"),
        ({"body": "x"}, None, "a.jsonl:1: no column 'text' or 'messages' or 'conversations'"),
        ({"text": "x"}, "body", "a.jsonl:1: no column 'body'"),
        ({"text": 7}, None, "a.jsonl:1: column 'text' holds a int"),
    ],
)
def test_a_row_of_another_shape_is_an_error(tmp_path: Path, row: Any, column: str | None, expected: str) -> None:
    assert problem(write_rows(tmp_path / "a.jsonl", [row]), column).message == expected


def test_of_a_pinned_data_set_another_part_is_asked_for(tmp_path: Path) -> None:
    """It cannot be edited."""
    folder = tmp_path / "owner--set@abc"
    folder.mkdir()
    source = TextSource(dataset="owner/set", revision="abc", split="train")
    (folder / "train.jsonl").write_text("{")
    with pytest.raises(QuantizationError, match=r"owner/set@abc/train\.jsonl:1: broken JSON") as caught:
        list(read(source, tmp_path))
    assert caught.value.hint == "Choose another `column`, `split` or data set."


def test_an_unknown_parquet_column_is_an_error_that_lists_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["one"], "title": ["two"]}), path)
    assert "body, title" in problem(path).hint


def test_broken_and_unknown_files_are_errors(tmp_path: Path) -> None:
    assert problem(tmp_path / "a.docx").message == "a.docx: cannot read .docx"
    pq.write_table(pa.table({"text": pa.array([b"\xff"]).cast(pa.string(), safe=False)}), tmp_path / "b.parquet")
    assert "broken parquet file: 'utf-8' codec" in problem(tmp_path / "b.parquet").message
    for name in ("a.parquet", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(b"not what the name says")
        assert "broken" in problem(tmp_path / name).message


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet", "txt"])
def test_reading_reports_every_byte_of_the_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"text": [f"line {number}" for number in range(3000)]}), path)
    else:
        write_rows(path, [{"text": f"line {number}"} for number in range(3000)])
    steps: list[tuple[str, int, int, str]] = []
    list(read(TextSource(file=str(path)), tmp_path, progress=lambda *step: steps.append(step)))
    size = path.stat().st_size
    assert steps[-1] == (f"reading {path}", size, size, "B")
    assert len(steps) > 2 or suffix == "jsonl.gz"  # a buffer holds all of that one
