"""Chat templates: broken, endless, for other roles, or different on another day."""

from __future__ import annotations

from datetime import date

from tests.bad_input.case import Accepted, Case, Change, Kind, Place, Refused
from tests.bad_input.stored import tokenizer_config

_TEMPLATE, _SETTINGS = "chat_template.jinja", "tokenizer_config.json"
_ALL = "{% for message in messages %}{{ message.content }}{% endfor %}"
_NAMED = {_TEMPLATE: None, _SETTINGS: tokenizer_config(chat_template=[{"name": "tool_use", "template": _ALL}])}
_LONG = "{% for a in range(99999) %}"
_ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__() }}"


def _tried(name: str, report: str, template: Change, right: Refused | Accepted, **more: Change) -> Case:
    files = {_TEMPLATE: template} | {path.replace("__", "."): content for path, content in more.items()}
    return Case(name=name, report=report, kind=Kind.TEMPLATE, place=Place.TOKENIZER, files=files, right=right)


def _planned(name: str, report: str, files: dict[str, Change], right: Refused | Accepted) -> Case:
    return Case(name=name, report=report, kind=Kind.TEMPLATE, place=Place.PLAN, files=files, right=right)


def _broken(*says: str) -> Refused:
    """No row is at fault, so no hint is about rows."""
    return Refused(5, names="chat template", says=says, never=("Leave such conversations out",))


_PLANNED = (
    _planned(
        "two-that-differ",
        "text-generation-inference#3247",
        {_SETTINGS: tokenizer_config(chat_template="{{ messages[0].content }}")},
        Accepted(says=(_TEMPLATE, "differ")),
    ),
    _planned("none", "transformers#33246", {_TEMPLATE: None}, Accepted()),
    _planned(
        "syntax-error",
        "",
        {_TEMPLATE: "{% for message in messages %}{{ message.content }"},
        Refused(3, names=_TEMPLATE),
    ),
    _planned(
        "tag-that-is-none",
        "",
        {_TEMPLATE: "{% during messages %}{% endduring %}"},
        Refused(3, names=_TEMPLATE, says=("during",)),
    ),
    _planned(
        "the-tag-of-trainers", "", {_TEMPLATE: "{% generation %}" + _ALL + "{% endgeneration %}"}, Accepted()
    ),
    _planned(
        "named-without-a-default", "", dict(_NAMED), Refused(3, names=_SETTINGS, says=("default", "tool_use"))
    ),
    _planned(
        "not-utf-8", "", {_TEMPLATE: b"\xff\xfe{{ messages }}"}, Refused(3, names=_TEMPLATE, says=("UTF-8",))
    ),
    _planned(
        "a-number",
        "",
        {_TEMPLATE: None, _SETTINGS: tokenizer_config(chat_template=7)},
        Refused(3, names=_SETTINGS, says=("chat_template",)),
    ),
    _planned(
        "nested-too-deeply",
        "",
        {_TEMPLATE: "{{" + "(" * 20_000 + "1" + ")" * 20_000 + "}}"},
        Refused(3, names=_TEMPLATE),
    ),
)

_TRIED = (
    _tried("division-by-zero", "", "{{ 1 // (messages | length - messages | length) }}", _broken("zero")),
    _tried("range-too-large", "", "{% for n in range(9999999) %}.{% endfor %}", _broken("ange")),
    _tried("endless-recursion", "", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", _broken("ecursion")),
    _tried("nested-loops-without-end", "vllm#50300", _LONG * 3 + "{% endfor %}" * 3, _broken()),
    _tried("two-gigabytes-of-text", "vllm#50300", "{{ 'x' * 2000000000 }}", _broken()),
    _tried("long-text-in-a-loop", "", _LONG + "{{ 'x' * 100000 }}{% endfor %}", _broken()),
    _tried("out-of-the-sandbox", "sglang#25009", _ESCAPE, _broken()),
    _tried("a-file-of-this-machine", "", "{% include '/etc/passwd' %}" + _ALL, _broken()),
    _tried("syntax-error", "", "{% for message in messages %}{{ message.content }", Refused(3, names=_TEMPLATE)),
    _tried("a-filter-that-is-none", "", "{{ messages | shuffled }}", _broken("shuffled")),
    _tried(
        "the-date-of-today",
        "text-generation-inference#2983",
        "{{ strftime_now('%Y-%m-%d') }}" + _ALL,
        Accepted(says=("Because.",), never=(date.today().isoformat(),)),
    ),
    _tried(
        "content-in-parts-alone",
        "vllm#9294",
        "{% for message in messages %}{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}"
        "{% endif %}{% endfor %}{% endfor %}",
        Accepted(says=("Why?", "Because.")),
    ),
    _tried("none", "transformers#33246", None, Accepted(says=("Why?\nBecause.",))),
    _tried("empty", "", "", _broken()),
    _tried("leaves-out-what-the-user-says", "", "{{ 'Hello.' }}", _broken()),
    _tried("names-that-are-not-given", "", "{{ documents }}{{ tools }}" + _ALL, Accepted(says=("Because.",))),
    _tried(
        "random-words",
        "",
        "{{ range(1000) | random }}{{ lipsum(n=1) if lipsum is defined }}" + _ALL,
        Accepted(says=("Because.",)),
    ),
    _tried(
        "named-without-a-default",
        "",
        None,
        Refused(3, names=_SETTINGS, says=("default",)),
        tokenizer_config__json=_NAMED[_SETTINGS],
    ),
    _tried(
        "refuses-with-escape-sequences",
        "",
        "{{ raise_exception('\x1b[31mno\\n::error::no\u202e') }}",
        _broken(),
    ),
)

_SHOWN = (
    Case(
        name="none",
        report="transformers#33246",
        kind=Kind.TEMPLATE,
        place=Place.CARD,
        files={_TEMPLATE: None},
        right=Accepted(says=("Once upon a time",), never=("Who are you?",)),
    ),
    Case(
        name="null",
        kind=Kind.TEMPLATE,
        place=Place.CARD,
        files={_TEMPLATE: None, _SETTINGS: tokenizer_config(chat_template=None)},
        right=Accepted(never=("Who are you?",)),
    ),
)

CASES: tuple[Case, ...] = (*_PLANNED, *_TRIED, *_SHOWN)
