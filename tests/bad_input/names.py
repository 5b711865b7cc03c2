"""Names of files, and what a repo says about itself: licence, language, task, tags."""

from __future__ import annotations

from pathlib import Path

from tests.bad_input.case import Accepted, Case, Change, Kind, Place, Refused

_ESCAPES = "\x1b[31mred\x1b[0m\n::error::gone\u202ereversed"


def _card(metadata: str) -> dict[str, Change]:
    return {"README.md": f"---\n{metadata}\n---\nA model.\n"}


def _planned(
    name: str, report: str, files: dict[str, Change], right: Refused | Accepted, **licenses: list[str]
) -> Case:
    entry = {"licenses": licenses} if licenses else {}
    return Case(name=name, report=report, kind=Kind.NAMES, place=Place.PLAN, files=files, entry=entry, right=right)


def _shown(name: str, report: str, right: Accepted, **card: object) -> Case:
    return Case(name=name, report=report, kind=Kind.NAMES, place=Place.CARD, card=card, right=right)


_LICENCES = (
    _planned(
        "licence-name-with-escape-sequences",
        "",
        _card('license: other\nlicense_name: "\\e[31mred\\e[0m\\n::error::gone"'),
        Refused(3, names="licence"),
        allow=["mit"],
    ),
    _planned("list-of-licences", "", _card("license: [mit, apache-2.0]"), Accepted()),
    _planned(
        "list-of-licences-one-of-which-is-denied",
        "",
        _card("license: [mit, apache-2.0]"),
        Refused(3, names="apache-2.0", says=("denied",)),
        deny=["apache-2.0"],
    ),
    _planned(
        "list-of-licences-one-of-which-is-not-allowed",
        "",
        _card("license: [mit, apache-2.0]"),
        Refused(3, names="apache-2.0", says=("not allowed",)),
        allow=["mit"],
    ),
    _planned("no-licence", "hub-docs#995", _card("language: en"), Refused(3, names="licence", says=("state",))),
    _planned("licence-is-a-number", "", _card("license: 7"), Refused(3, names="licence")),
    _planned("licence-in-capitals", "", _card("license: MIT"), Accepted(), allow=["mit"]),
)

_METADATA = (
    _planned(
        "results-that-are-text", "huggingface_hub#3000", _card("license: mit\neval_results: none"), Accepted()
    ),
    _planned(
        "results-without-a-name",
        "huggingface_hub#2894",
        _card("license: mit\nmodel-index:\n- results: 7"),
        Accepted(),
    ),
    _planned(
        "data-sets-that-are-null", "transformers#13528", _card("license: mit\ndatasets:\n- null"), Accepted()
    ),
    _planned("metadata-is-a-list", "", _card("- license: mit"), Refused(3, names="licence")),
    _planned("metadata-that-is-no-yaml", "", _card("license: mit\n  : ["), Refused(3, names="licence")),
    _planned("no-card", "", {"README.md": None}, Refused(3, names="licence")),
)

_PATHS = (
    _planned(
        "path-of-another-system",
        "huggingface_hub#4540",
        {"LICENSE\\..\\..\\beside\\kept.txt": "x"},
        Refused(3, names="LICENSE", says=("unsafe file name",)),
    ),
    _planned(
        "drive-of-another-system",
        "huggingface_hub#4086",
        {"NOTICE:C": "x"},
        Refused(3, names="NOTICE", says=("unsafe",)),
    ),
    _planned(
        "file-name-with-escape-sequences",
        "",
        {"LICENSE\x1b[2J": "x"},
        Refused(3, names="LICENSE", says=("unsafe",)),
    ),
    _planned(
        "file-name-that-ends-with-a-dot", "huggingface_hub#4912", {"LICENSE.": "x", "LICENSE": "y"}, Accepted()
    ),
    _planned("two-names-that-differ-in-case", "", {"LICENSE": "x", "license": "y"}, Accepted()),
    _planned(
        "file-name-that-no-disk-takes",
        "huggingface_hub#35",
        {f"LICENSE-{'x' * 260}.txt": "x"},
        Refused(3, names="LICENSE-xxx"),
    ),
)


def _taken(job: Path) -> None:
    """There is a folder where a file belongs."""
    (job / "source" / "tokenizer.json").mkdir(parents=True)
    (job / "source" / "tokenizer.json" / "inside").write_text("x")


_PULLED = (
    Case(
        name="folder-of-a-files-name",
        kind=Kind.NAMES,
        place=Place.PULL,
        prepare=_taken,
        right=Refused(8, names="tokenizer.json"),
    ),
    Case(
        name="file-name-that-ends-with-a-dot",
        report="huggingface_hub#4912",
        kind=Kind.NAMES,
        place=Place.PULL,
        files={"LICENSE.": "x", "LICENSE": "y"},
        right=Accepted(says=("LICENSE",)),
    ),
)

_SHOWN = (
    _shown(
        "licence-with-escape-sequences",
        "",
        Accepted(never=("\x1b", "\u202e", "\n::error")),
        license=_ESCAPES,
        license_name=_ESCAPES,
    ),
    _shown(
        "licence-link-that-runs-code",
        "",
        Accepted(never=("javascript:",)),
        license="other",
        license_name="own",
        license_link="javascript:alert(1)",
    ),
    _shown("licence-longer-than-the-hub-takes", "", Accepted(never=("m" * 300,)), license="m" * 5000),
    _shown("task-that-is-markup", "", Accepted(never=("<b>",)), pipeline_tag="<b>text</b>"),
    _shown(
        "language-that-is-none",
        "huggingface_hub#1927",
        Accepted(never=("klingon-of-the-north",)),
        languages=("klingon-of-the-north", "en"),
    ),
    _shown("tags-that-are-markup", "", Accepted(never=("<b>",)), tags=("<b>x</b>", "base_model:other/model")),
)

CASES: tuple[Case, ...] = (*_LICENCES, *_METADATA, *_PATHS, *_PULLED, *_SHOWN)
