"""Cards: metadata as the server checks it, and the pages in a browser, where an untrusted card can do nothing."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2
import pytest
from huggingface_hub.utils import get_session

from bot.localhub import LocalHub
from bot.localhub.card import body, check_card, front_matter
from bot.localhub.store import Content


@pytest.mark.parametrize(
    "metadata",
    [
        "license: apache-2.0",
        "license: other\nlicense_name: tiny-license\nlicense_link: LICENSE",
        "base_model: org/name\nbase_model_relation: quantized",
        "base_model:\n- org/name\n- other/name",
        "language:\n- en\n- no\n- zh-Hans\n- multilingual",
        "tags: [awq, 4-bit]\npipeline_tag: text-generation\nlibrary_name: transformers",
        "inference: false\nquantized_by: someone",
        "date: 2024-01-01",
    ],
)
def test_good_metadata(metadata: str) -> None:
    assert check_card(f"---\n{metadata}\n---\n# Title\n") == ([], [])


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("license", ["apache2", "Apache-2.0", "other", "[{a: b}]"]),
        ("license_name", ["Not A Name\nlicense: other"]),
        ("base_model", ["https://huggingface.co/org/name", "5"]),
        ("base_model_relation", ["distilled\nbase_model: a/b", "quantized"]),
        ("language", ["English", "[en, 5]"]),
        ("pipeline_tag", ["[text-generation]", "making-tea"]),
        ("tags", ["awq", "[1]"]),
        ("library_name", ["[transformers]"]),
    ],
)
def test_bad_metadata_names_the_key(key: str, values: list[str]) -> None:
    found = [check_card(f"---\n{key}: {value}\n---\n# Title\n")[0] for value in values]
    assert [[error.split()[0] for error in errors] for errors in found] == [[f'"{key}"']] * len(values)


@pytest.mark.parametrize(
    ("readme", "errors", "warnings"),
    [
        ("---\na: [\n---\n", 1, 0),
        ("---\n- a\n- b\n---\n", 1, 0),
        ("---\njust text\n---\n", 1, 0),
        ("# Title\n", 0, 1),
        ("", 0, 1),
        ("---\n---\n# Title\n", 0, 1),
        ("text\n---\nlicense: nothing\n---\n", 0, 1),
    ],
)
def test_no_metadata_is_a_warning_and_no_mapping_an_error(readme: str, errors: int, warnings: int) -> None:
    found = check_card(readme)
    assert tuple(map(len, found)) == (errors, warnings)
    assert found[1] == ["empty or missing yaml metadata in repo card"] * warnings


@pytest.mark.parametrize(
    ("readme", "metadata", "text"),
    [
        ("---\na: x---y\nb: 1\n---\n---\n", {"a": "x---y", "b": 1}, "---\n"),
        ("\ufeff---\r\nlicense: mit\r\n---\r\nText", {"license": "mit"}, "Text"),
        ("# Title\n---\na: 1\n---\n", None, "# Title\n---\na: 1\n---\n"),
    ],
)
def test_metadata_ends_at_the_second_marker(readme: str, metadata: dict[str, Any] | None, text: str) -> None:
    assert front_matter(readme) == metadata
    assert body(readme) == text


# --- pages --------------------------------------------------------------------------------------------------

REPO = "upstream/tiny"
PNG = b"\x89PNG\r\n\x1a\n\0" + bytes(50)
CARD = """---
license: apache-2.0
base_model: someone/base
tags: [chat]
---
# Tiny

A [licence](LICENSE), its [base](/someone/base), [a paper](https://arxiv.org/abs/2306.00978), [below](#use).

| figure | value |
|---|---:|
| KL | 0.05 |

![error](./assets/x/../error%20by.png)
"""


class Page(HTMLParser):
    """Tags with their attributes, and the text outside the style sheet."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += "" if self.tags and self.tags[-1][0] == "style" else data

    def all(self, tag: str, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for name, attrs in self.tags if name == tag and attribute in attrs]


def browse(hub: LocalHub, path: str, **headers: str) -> httpx2.Response:
    accept = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    return get_session().get(f"{hub.endpoint}{path}", headers=accept | headers)


def opened(hub: LocalHub, path: str) -> Page:
    answer = browse(hub, path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return Page(answer.text)


@pytest.fixture
def sha(hub: LocalHub) -> str:
    files: dict[str, Content] = {"README.md": CARD, "LICENSE": "free", "assets/error by.png": PNG}
    return hub.seed(REPO, files | {"config.json": "{}", "w.bin": b"\0" * 2000})


def test_repo_page_shows_the_card_with_its_picture_and_the_files(hub: LocalHub, sha: str) -> None:
    page = opened(hub, f"/{REPO}")
    assert page.all("img", "src") == [f"/{REPO}/resolve/main/assets/error%20by.png"]
    assert browse(hub, page.all("img", "src")[0]).content == PNG
    assert {"th", "h1", "table"} <= {tag for tag, _ in page.tags}
    assert page.all("td", "class") == ["right"]
    links = page.all("a", "href")
    for link in (f"/{REPO}/blob/main/LICENSE", "/someone/base", "https://arxiv.org/abs/2306.00978", "#use"):
        assert link in links
    for text in ("apache-2.0", "chat", "2.0 kB", "assets/", sha[:8]):
        assert text in page.text
    assert "license: apache-2.0" not in page.text  # the metadata is no part of the text
    hub.seed(REPO, {"README.md": "# Another"})
    assert "KL" in opened(hub, f"/{REPO}/tree/{sha}").text
    assert "KL" not in opened(hub, f"/{REPO}").text


def test_every_link_of_a_repo_opens(hub: LocalHub, sha: str) -> None:
    hub.seed(REPO, {"README.md": "later", "deep/er/x.txt": "x"})
    hub.repo(REPO).create_ref("refs/tags/v1/rc", sha)
    hub.seed("a/data", {"README.md": "[f](d.csv)", "d.csv": "1,2"}, repo_type="dataset")
    seen, waiting = set(), ["/", f"/{REPO}/tree/main/", f"/{REPO}/commit/{sha}"]
    while waiting:
        path = waiting.pop()
        if path in seen or path in ("/someone/base",):
            continue
        seen.add(path)
        answer = browse(hub, path)
        assert answer.status_code == 200, path
        if "text/html" in answer.headers["content-type"]:
            page = Page(answer.text)
            links = [urlsplit(urljoin(path, url)) for url in page.all("a", "href") + page.all("img", "src")]
            waiting += [link.path for link in links if not link.netloc]
    expected = [
        f"/{REPO}/tree/v1%2Frc", f"/{REPO}/blob/v1%2Frc/assets/error%20by.png", f"/{REPO}/tree/main/deep/er",
        f"/{REPO}/resolve/main/w.bin", "/datasets/a/data", "/datasets/a/data/blob/main/d.csv",
    ]  # fmt: skip
    assert [path for path in expected if path not in seen] == []


def test_file_page_previews_small_text_alone(hub: LocalHub) -> None:
    text = '{"a": "<b>"}'
    files: dict[str, Content] = {"w.bin": b"\0", "latin.txt": b"caf\xe9", "large.txt": "x" * 600_000}
    hub.seed(REPO, files | {"config.json": text})
    for path, shown in (dict.fromkeys(files, "No preview") | {"config.json": text}).items():
        page = opened(hub, f"/{REPO}/blob/main/{path}")
        assert shown in page.text
        assert "b" not in {tag for tag, _ in page.tags}
        assert hub.history(REPO)[0].files[path].sha256 in page.text


HOSTILE = r"""---
license: "<script>alert(1)</script>"
tags: ["\"><img src=x onerror=alert(1)>"]
base_model: ["javascript:alert(1)", "/evil.example", "//evil.example", '\evil.example']
---
<script>alert(1)</script><iframe src="/x"></iframe><b onclick="x">bold</b><style>*{display:none}</style>
<meta http-equiv="refresh" content="0;url=https://evil.example">

[a](javascript:alert(1)) [b](JAVASCRIPT:alert(1)) [c](data:text/html,x) [d](vbscript:x) [e](java&#10;script:x)
[f](//evil.example) [g](/\evil.example) [h](\\evil.example) [i](../../../api/whoami-v2) [j](%2e%2e/%2e%2e/x)
[k]( javascript:x) [l](file:///etc/passwd) [m](x:y) [n](http:evil.example) <javascript:alert(1)>
[o](LICENSE "\" onmouseover=\"alert(1)") [p]("onmouseover="alert(1))

![1](../../secret.png) ![2](https://evil.example/pixel.png) ![3](data:image/png;base64,AAAA) ![4](//evil.example/x)
![5](%2e%2e/%2e%2e/x.png) ![6](/\evil.example/x.png) [![7](https://evil.example/badge.svg)](https://evil.example)
![8" onerror="alert(1)](x.png)

```html" onclick="alert(1)
<script>alert(1)</script>
```
"""


def test_nothing_of_a_hostile_card_is_live(hub: LocalHub) -> None:
    hub.seed(REPO, {"README.md": HOSTILE, 'a"><script>.txt': "x"}, message="<script>alert(1)</script>")
    for path in (f"/{REPO}", "/"):
        page = opened(hub, path)
        live = {"script", "iframe", "b", "object", "embed", "form", "svg", "link", "base", "template"}
        assert not live & {tag for tag, _ in page.tags}
        assert len([tag for tag, _ in page.tags if tag in ("style", "meta")]) == 3
        names = {name for _, attributes in page.tags for name in attributes}
        assert not [name for name in names if name.startswith("on") or name == "style"]
        for url in page.all("img", "src"):
            assert re.match(rf"/{REPO}/resolve/main/[^.]", url)
        for url in page.all("a", "href"):
            parts = urlsplit(url)
            assert parts.scheme in ("", "https")
            assert parts.netloc in ("", "evil.example" if parts.scheme else "")
            assert ".." not in url
            assert not url.startswith(("//", "/\\"))
    assert "alert(1)" in opened(hub, f"/{REPO}").text


def test_policy_lets_nothing_run_and_pictures_come_from_this_hub_alone(hub: LocalHub, sha: str) -> None:
    answer = browse(hub, f"/{REPO}")
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert rules.pop("style-src") == f"'nonce-{Page(answer.text).all('style', 'nonce')[0]}'"
    assert re.fullmatch(r"'self' http://localhost:\d+", rules.pop("img-src"))
    assert rules.keys() == {"default-src", "base-uri", "form-action", "frame-ancestors"}
    assert set(rules.values()) == {"'none'"}
    again = browse(hub, f"/{REPO}")
    assert again.headers["content-security-policy"] != answer.headers["content-security-policy"]


@pytest.mark.parametrize("piece", ["![", "*a_ ", "|a"])
def test_cards_made_to_keep_the_parser_busy_are_soon_answered(hub: LocalHub, piece: str) -> None:
    hub.seed(REPO, {"README.md": piece * (100_000 // len(piece))})
    started = time.monotonic()
    opened(hub, f"/{REPO}")
    assert time.monotonic() - started < 30


def test_a_card_too_large_to_render_is_still_listed(hub: LocalHub) -> None:
    hub.seed(REPO, {"README.md": "# Title\n" + "x" * 100_000})
    page = opened(hub, f"/{REPO}")
    assert "larger than 100,000 bytes" in page.text
    assert f"/{REPO}/blob/main/README.md" in page.all("a", "href")


def test_private_and_gated_repos_keep_their_content(hub: LocalHub, sha: str) -> None:
    hub.seed(REPO, {}, gated="auto")
    page = opened(hub, f"/{REPO}")
    assert "gated" in page.text
    assert "KL" not in page.text
    assert browse(hub, f"/{REPO}/blob/main/README.md").status_code == 401
    token = {"authorization": f"Bearer {hub.add_token('member', orgs=['upstream'])}"}
    assert "KL" in browse(hub, f"/{REPO}", **token).text
    hub.seed(REPO, {}, private=True)
    assert REPO not in opened(hub, "/").text
    hidden = browse(hub, f"/{REPO}")
    assert hidden.status_code == 401
    assert "KL" not in hidden.text
    # A private repo and one that is not there look the same.
    assert Page(hidden.text).text == Page(browse(hub, "/upstream/missing").text).text


def test_clients_that_ask_for_no_html_get_plain_text(hub: LocalHub, sha: str) -> None:
    def plain(path: str) -> str:
        answer = get_session().get(f"{hub.endpoint}{path}", follow_redirects=True)
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        return answer.text

    assert f"{hub.endpoint}/{REPO}" in plain("")
    assert "w.bin" in plain(f"/{REPO}")
    assert "# Tiny" in plain(f"/{REPO}/tree/main")
    assert sha in plain(f"/{REPO}/commit/{sha}")
    assert plain(f"/{REPO}/blob/main/LICENSE") == "free"
