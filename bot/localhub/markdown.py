"""A model card as HTML. Cards are untrusted: no HTML of theirs comes out, and only links lead elsewhere."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Where relative addresses lead: `images` and `files` are URL paths that end in a slash."""

    images: str
    files: str


def to_html(markdown: str, links: Links) -> Markup:
    """CommonMark with tables and strikethrough, as the Hub renders cards; markup in it is shown as text.

    Relative images and links are resolved inside the repo. A link that leads elsewhere than to http(s) stays text;
    an image from elsewhere becomes a link, so that opening a page sends nothing to other servers.
    """
    parser = _Parser("commonmark", {"html": False}).enable(["table", "strikethrough"])
    tokens = _resolve(parser.parse(markdown), links)
    # markdown-it escapes text and attributes: https://github.com/executablebooks/markdown-it-py
    return Markup(parser.renderer.render(tokens, parser.options, {}))  # noqa: S704 - escaped, see above


class _Parser(MarkdownIt):
    def validateLink(self, url: str) -> bool:  # noqa: N802 - the library's name
        return _is_external(url) or _is_local(url)


def _is_external(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _is_local(url: str) -> bool:
    """An anchor, a page of this server, or a path that stays inside the repo."""
    if url.startswith("#"):
        return True
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    # Browsers read a backslash as a slash, so `/\host` is another server's address.
    path = unquote(parts.path).replace("\\", "/")
    return not parts.scheme and not parts.netloc and not path.startswith("//") and _inside(path) is not None


def _inside(path: str) -> str | None:
    """The path without `.` and `..`; None when it leads out of its repo."""
    plain = posixpath.normpath(path)
    return None if plain == ".." or plain.startswith("../") else plain


def _resolve(tokens: Sequence[Token], links: Links) -> list[Token]:
    resolved, in_link = [], False
    for token in tokens:
        if token.type == "link_open":
            token.attrs["href"] = _resolved(str(token.attrs["href"]), links.files)
            token.attrs["rel"] = "nofollow noreferrer"
        elif "style" in token.attrs:
            # The alignment of a table's cell. The page's Content-Security-Policy blocks style attributes.
            token.attrs["class"] = str(token.attrs.pop("style")).rpartition(":")[2]
        in_link = token.type == "link_open" or (in_link and token.type != "link_close")
        token.children = _resolve(token.children, links) if token.children else token.children
        resolved += _image(token, links.images, in_link=in_link) if token.type == "image" else [token]
    return resolved


def _image(image: Token, base: str, *, in_link: bool) -> list[Token]:
    source = str(image.attrs["src"])
    if not _is_external(source):
        image.attrs["src"] = _resolved(source, base)
        return [image]
    name = Token("text", "", 0, content=image.content or source)
    if in_link:
        return [name]
    attributes: dict[str, str | int | float] = {"href": source, "rel": "nofollow noreferrer"}
    return [Token("link_open", "a", 1, attrs=attributes), name, Token("link_close", "a", -1)]


def _resolved(url: str, base: str) -> str:
    if _is_external(url) or url.startswith(("#", "/")):
        return url
    parts = urlsplit(url)
    path = quote(_inside(unquote(parts.path)) or "", safe="/")
    return f"{base}{path}{'#' + parts.fragment if parts.fragment else ''}"
