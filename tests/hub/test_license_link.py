"""What the `license_link` of a card leads to: a file of its repo, an address, or nothing."""

from __future__ import annotations

import pytest

from bot.hub.license_link import LicenseLink, read_link
from bot.hub.sources import read_sources
from bot.localhub import LocalHub
from bot.watch.digests import refresh_files
from tests.support import factories
from tests.support.repos import SOURCE, as_bot, source_files

PATHS = {"LICENSE", "docs/My Terms.md", "README.md", "许可.txt"}
PAGE = "http://hub.test/lab/New/blob/abc/"


def link(stated: str) -> LicenseLink:
    return read_link(
        stated, endpoint="http://hub.test", repo_id="lab/New", old_id="lab/Old", sha="abc", paths=PATHS
    )


@pytest.mark.parametrize(
    ("stated", "file"),
    [
        *((stated, "LICENSE") for stated in ("LICENSE", "./LICENSE", "docs/../LICENSE", "LICENSE#grant")),
        ("docs/My Terms.md", "docs/My Terms.md"),
        ("docs/My%20Terms.md", "docs/My Terms.md"),
        ("README.md#license", "README.md"),
        ("许可.txt", "许可.txt"),
        ("http://hub.test/lab/New/blob/main/LICENSE", "LICENSE"),
        ("https://huggingface.co/lab/New/resolve/main/LICENSE?download=true", "LICENSE"),
        ("https://hf.co/LAB/new/raw/0123abc/docs/My%20Terms.md", "docs/My Terms.md"),
        ("https://huggingface.co/lab/Old/blob/refs%2Fpr%2F1/LICENSE", "LICENSE"),
        ("/lab/New/blob/main/LICENSE", "LICENSE"),
    ],
)
def test_a_link_to_a_file_of_the_repo_is_that_file_at_its_commit(stated: str, file: str) -> None:
    found = link(stated)
    assert found.file == file
    assert found.url == PAGE + {
        "docs/My Terms.md": "docs/My%20Terms.md",
        "许可.txt": "%E8%AE%B8%E5%8F%AF.txt",
    }.get(file, file)


@pytest.mark.parametrize(
    "stated",
    [
        "https://www.apache.org/licenses/LICENSE-2.0",
        "http://lab.example/terms?lang=en#a",
        "https://huggingface.co/lab/Other/blob/main/LICENSE",
        "https://huggingface.co/lab/New/blob/main/MISSING",
        "https://huggingface.co/lab/New/tree/main/LICENSE",
        "https://evil.example/lab/New/blob/main/LICENSE",
    ],
)
def test_an_address_stays_an_address(stated: str) -> None:
    assert link(stated) == LicenseLink(url=stated)


@pytest.mark.parametrize(
    "stated",
    [
        *("", "MISSING", "../LICENSE", "/LICENSE", "/etc/passwd", "#license", "docs", "."),
        *("javascript:alert(1)", "JAVASCRIPT:alert(1)", "data:text/html,x", "file:///etc/passwd", "C:\\LICENSE"),
        *("//evil.example/LICENSE", "http:LICENSE", "https://", "https:///LICENSE", "http://[::1/x", "ftp://a/b"),
        *(
            "https://huggingface.co@evil.example/x",
            "https://a.example\\@b/",
            "https://a.example/ b",
            "LICENSE\x00",
        ),
        *("https://a.example/\x1b[31m", "LICENSE\n", "https://a.example/\u202egnp", "https://a.example/<b>"),
        "https://a.example/" + "x" * 2000,
    ],
)
def test_anything_else_leads_nowhere(stated: str) -> None:
    assert link(stated) == LicenseLink()


@pytest.mark.parametrize(
    ("stated", "carried"),
    [
        ("docs/agreement-v3.md", True),
        ("{endpoint}/lab/Tiny/resolve/main/docs/agreement-v3.md", True),
        *(
            (path, False)
            for path in ("README.md", "modeling.py", "model.safetensors", "figure.png", "config.json")
        ),
        (".cache/terms.md", False),
        ("huge.txt", False),
    ],
)
def test_the_file_that_it_names_is_one_of_the_small_files(hub: LocalHub, stated: str, carried: bool) -> None:
    stated = stated.format(endpoint=hub.endpoint)
    card = f"---\nlicense: other\nlicense_name: lab\nlicense_link: {stated}\n---\n"
    others = dict.fromkeys(("docs/agreement-v3.md", "docs/other.md", "modeling.py", "figure.png"), "x")
    files = source_files(README__md=card) | others | {".cache/terms.md": "x", "huge.txt": b" " * 10_000_001}
    sha = hub.seed(SOURCE, files)
    found = read_sources(as_bot(hub), [factories.entry()])[0]
    path = stated.partition("/main/")[2] or stated
    assert (found.license_link, found.license_file) == (stated, path)
    assert found.license_url == f"{hub.endpoint}/{SOURCE}/blob/{sha}/{path}"
    usual = {"LICENSE", "generation_config.json", "tokenizer_config.json"}
    assert {file.path for file in refresh_files(found)} == (usual | {path} if carried else usual)
