"""The standard library as text: selection, splits, stability."""

import json.decoder
import sysconfig
from hashlib import sha256
from pathlib import Path

import pytest

from bot.calibration import stdlib


def test_splits_share_no_module() -> None:
    paths = [path for split in stdlib.SPLITS for path in stdlib.modules(split)]
    assert len(paths) == len(set(paths))


def test_splits_share_no_document() -> None:
    """The same text under two names would put evaluation text into training."""
    seen: dict[str, stdlib.Split] = {}
    for split in stdlib.SPLITS:
        for document in stdlib.documents(split):
            if len(document) > 1000:
                assert seen.setdefault(document, split) == split


@pytest.mark.parametrize(
    ("split", "least", "most"),
    [("train", 0.60, 0.80), ("calibrate", 0.09, 0.21), ("dev", 0.03, 0.13), ("test", 0.03, 0.13)],
)
def test_shares_of_modules_are_near_the_rule(split: stdlib.Split, least: float, most: float) -> None:
    total = sum(len(stdlib.modules(each)) for each in stdlib.SPLITS)
    assert least < len(stdlib.modules(split)) / total < most


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("json/decoder.py", "train"),
        ("argparse.py", "calibrate"),
        ("datetime.py", "calibrate"),
        ("functools.py", "dev"),
        ("os.py", "dev"),
        ("pickle.py", "test"),
        ("unittest/mock.py", "test"),
    ],
)
def test_a_module_never_changes_its_split(name: str, expected: stdlib.Split) -> None:
    assert stdlib.split_of(name) == expected


def test_split_follows_the_first_eight_bytes_of_the_hash() -> None:
    for name in ("a.py", "b/c.py", "datetime.py"):
        share = int(sha256(name.encode()).hexdigest()[:16], 16) / 2**64
        expected = "train" if share < 0.7 else "calibrate" if share < 0.84 else "dev" if share < 0.92 else "test"
        assert stdlib.split_of(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "test/test_os.py",
        "unittest/test/dummy.py",
        "distutils/tests/support.py",
        "encodings/cp1252.py",
        "pydoc_data/topics.py",
        "html/entities.py",
        "idlelib/run.py",
        "lib2to3/main.py",
        "site-packages/numpy/core.py",
        "_sysconfigdata__linux_x86_64-linux-gnu.py",
        "config-3.11-x86_64-linux-gnu/python-config.py",
    ],
)
def test_tests_tables_and_other_peoples_packages_are_left_out(name: str) -> None:
    assert not stdlib.is_selected(name)


def test_a_module_called_test_is_not_a_folder_of_tests() -> None:
    assert stdlib.is_selected("test.py")
    assert stdlib.is_selected("json/decoder.py")


def test_text_is_the_documents_in_order_of_their_paths() -> None:
    root = Path(sysconfig.get_path("stdlib"))
    names = [path.relative_to(root).as_posix() for path in stdlib.modules("calibrate")]
    assert names == sorted(names)
    assert stdlib.text("calibrate") == "".join(f"{document}\n" for document in stdlib.documents("calibrate"))
    assert stdlib.text("calibrate") == stdlib.text("calibrate")


def test_documents_are_the_sources_as_they_are_on_disk() -> None:
    position = stdlib.modules("train").index(Path(json.decoder.__file__))
    assert stdlib.documents("train")[position].strip() == Path(json.decoder.__file__).read_text("utf-8").strip()


def test_there_is_enough_text_for_128_blocks_of_512_tokens() -> None:
    """At about four characters a token for a large vocabulary."""
    assert len(stdlib.text("calibrate")) > 128 * 512 * 4


def test_bytes_that_are_not_utf8_do_not_stop_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\r\nname = '\xe9'\r\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    stdlib.modules.cache_clear()
    try:
        assert stdlib.documents(stdlib.split_of("latin.py")) == ("# -*- coding: latin-1 -*-\nname = '\ufffd'\n",)
    finally:
        monkeypatch.undo()
        stdlib.modules.cache_clear()


def test_modules_are_all_that_take_part_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.py", "json/b.py", "json/deep/er/c.py", "json/deep-er.py", "test.py"]
    others = ["test/d.py", "json/tests/e.py", "site-packages/f/g.py", "config-3.11/h.py", "json/i.pyc", "token.py"]
    for name in (*names, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    for split in stdlib.SPLITS:
        expected = [tmp_path / name for name in sorted(names) if stdlib.split_of(name) == split]
        assert list(stdlib.modules.__wrapped__(split)) == expected


def test_version_names_rule_and_python() -> None:
    name, _, python = stdlib.BUILTIN_VERSION.partition("+")
    assert name == f"stdlib/{stdlib.SELECTION_VERSION}"
    assert python.startswith("python3.")
