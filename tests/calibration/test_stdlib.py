"""The standard library as text: selection, splits, stability."""

import argparse
import sysconfig
from hashlib import sha256
from pathlib import Path

import pytest

from bot.calibration import stdlib

ALL: dict[str, range] = dict(stdlib._SHARES) | {"rest": range(70), "more": range(84, 92)}


def test_splits_share_no_document() -> None:
    """The same text under two names would put evaluation text into calibration."""
    assert sorted(share for shares in ALL.values() for share in shares) == list(range(100))
    seen: dict[str, str] = {}
    for split, shares in ALL.items():
        for document in map(stdlib.read, stdlib.modules(shares)):
            if len(document) > 1000:
                assert seen.setdefault(document, split) == split


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("rest", ["json/decoder.py"]),
        ("calibrate", ["argparse.py", "datetime.py"]),
        ("more", ["functools.py", "os.py"]),
        ("test", ["pickle.py", "unittest/mock.py"]),
    ],
)
def test_module_never_changes_its_split(split: str, names: list[str]) -> None:
    assert all(stdlib.share_of(name) in ALL[split] for name in names)


def test_share_is_the_first_eight_bytes_of_the_hash() -> None:
    for name in ("a.py", "b/c.py", "datetime.py"):
        assert stdlib.share_of(name) == int(int(sha256(name.encode()).hexdigest()[:16], 16) / 2**64 * 100)


def test_tests_tables_and_third_party_code_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.py", "json/decoder.py", "json/deep/er/c.py", "json/deep-er.py", "test.py"]
    tests = ["test/test_os.py", "unittest/test/dummy.py", "distutils/tests/support.py"]
    tables = ["encodings/cp1252.py", "pydoc_data/topics.py", "html/entities.py", "token.py"]
    others = ["idlelib/run.py", "lib2to3/main.py", "site-packages/numpy/core.py"]
    build = ["_sysconfigdata__linux_x86_64-linux-gnu.py", "config-3.11-x86_64-linux-gnu/python-config.py"]
    left_out = tests + tables + others + build
    for name in (*names, *left_out, "json/i.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert list(stdlib.modules.__wrapped__(range(100))) == [tmp_path / name for name in sorted(names)]
    assert not any(map(stdlib.is_selected, left_out))


def test_documents_are_the_sources_in_order_of_their_paths() -> None:
    root, paths = Path(sysconfig.get_path("stdlib")), stdlib.modules(ALL["calibrate"])
    names = [path.relative_to(root).as_posix() for path in paths]
    assert names == sorted(names)
    position = paths.index(Path(argparse.__file__))
    assert stdlib.documents("calibrate")[position].strip() == Path(argparse.__file__).read_text("utf-8").strip()


def test_there_is_enough_text_for_128_blocks_of_512_tokens() -> None:
    """At about four characters a token for a large vocabulary."""
    assert sum(map(len, stdlib.documents("calibrate"))) > 128 * 512 * 4


def test_bytes_that_are_not_utf8_do_not_stop_reading(tmp_path: Path) -> None:
    path = tmp_path / "latin.py"
    path.write_bytes(b"# -*- coding: latin-1 -*-\r\nname = '\xe9'\r\n")
    assert stdlib.read(path) == "# -*- coding: latin-1 -*-\nname = '\ufffd'\n"


def test_version_names_rule_and_python() -> None:
    name, _, python = stdlib.BUILTIN_VERSION.partition("+")
    assert name == f"stdlib/{stdlib.SELECTION_VERSION}"
    assert python.startswith("python3.")
