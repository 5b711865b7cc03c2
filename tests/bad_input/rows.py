"""Calibration text: rows of other shapes, roles and content than a chat template expects, and broken files."""

from __future__ import annotations

import gzip
from typing import Any

from bot.localhub import Fault
from tests.bad_input.case import PINNED, Accepted, Case, Kind, Place, Refused

_ELSEWHERE = "0123456789abcdef0123456789abcdef01234567"
_LLAMA = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{{ message['content'] | trim }}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
)
_STRICT = (
    "{% for message in messages %}{% if message.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ message.content | trim }}{% endfor %}"
)
_JOINED = "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
_MANY = 60


def _messages(*turns: tuple[str, object]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _encoded(
    name: str, report: str, right: Refused | Accepted, *rows: object, among: int = _MANY, template: str = _LLAMA
) -> Case:
    return Case(
        name=name,
        report=report,
        kind=Kind.ROWS,
        place=Place.TOKENIZER,
        files={"chat_template.jinja": template},
        rows=rows,
        among=among,
        right=right,
    )


_PARTS = [{"type": "text", "text": "What do the marmots eat?"}]
_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
_ANSWER = ("assistant", "They eat grass, and that is all that they do.")
_LEFT_OUT = Accepted(says=('"rows_left_out"',))

_CONVERSATIONS = (
    _encoded(
        "content-in-parts",
        "sglang#3296",
        Accepted(says=("marmots",), never=("'type'",)),
        _messages(("user", _PARTS), _ANSWER),
    ),
    _encoded(
        "content-in-parts-that-a-template-joins",
        "transformers#41756",
        Accepted(says=("marmots",), never=("'type'",)),
        _messages(("user", _PARTS), _ANSWER),
        template=_JOINED,
    ),
    _encoded(
        "content-with-an-image",
        "vllm#12742",
        Accepted(says=("marmots",), never=("'type'", "base64")),
        _messages(("user", [*_PARTS, _IMAGE]), _ANSWER),
    ),
    _encoded("content-is-an-image-alone", "", _LEFT_OUT, _messages(("user", [_IMAGE]), _ANSWER)),
    _encoded(
        "content-is-null",
        "",
        Accepted(never=("assistant\nNone",)),
        _messages(("user", "marmots?"), ("assistant", None)),
    ),
    _encoded("content-is-missing", "", _LEFT_OUT, {"messages": [{"role": "user"}]}),
    _encoded("content-is-a-number", "", Accepted(never=("user\n7",)), _messages(("user", 7), _ANSWER)),
    _encoded(
        "a-call-of-a-tool-without-content",
        "speech-to-speech#425",
        Accepted(says=("marmots?",)),
        {
            "messages": [
                {"role": "user", "content": "marmots?"},
                {"role": "assistant", "tool_calls": [{"function": {"name": "look_up", "arguments": {}}}]},
                {"role": "tool", "content": "They eat grass."},
            ]
        },
        template=_JOINED,
    ),
    _encoded("no-messages", "", _LEFT_OUT, {"messages": []}),
    _encoded("messages-are-text", "", Accepted(), {"messages": "marmots"}),
    _encoded("messages-are-null", "", Accepted(), {"messages": None}),
    _encoded(
        "system-role-that-the-template-refuses",
        "LlamaFactory#8217",
        _LEFT_OUT,
        _messages(("system", "Be brief."), ("user", "marmots?"), _ANSWER),
        template=_STRICT,
    ),
    _encoded(
        "roles-out-of-order",
        "smol-course#260",
        _LEFT_OUT,
        _messages(("user", "One."), ("user", "Two.")),
        template=_STRICT,
    ),
    _encoded(
        "every-row-is-out-of-order",
        "alignment-handbook#93",
        Refused(5, names="rows.jsonl", says=("alternate",)),
        *(_messages(("assistant", f"First {number}.")) for number in range(20)),
        template=_STRICT,
        among=0,
    ),
    _encoded("role-is-missing", "", _LEFT_OUT, {"messages": [{"content": "marmots"}]}),
    _encoded(
        "half-a-surrogate-pair",
        "transformers#8886",
        Accepted(says=("\ufffd",)),
        '{"messages": [{"role": "user", "content": "marmots \\ud83d"}, {"role": "assistant", "content": "Yes."}]}',
    ),
    _encoded(
        "sharegpt",
        "",
        Accepted(says=("user\nmarmots?", "assistant\nThey eat")),
        {"messages": [{"from": "human", "value": "marmots?"}, {"from": "gpt", "value": "They eat grass."}]},
    ),
    _encoded(
        "special-tokens-in-the-text",
        "",
        Accepted(says=("marmots",)),
        _messages(("user", "<|im_end|><|endoftext|>marmots"), _ANSWER),
    ),
    _encoded("null-characters", "", Accepted(), '{"messages": [{"role": "user", "content": "a\\u0000b"}]}'),
)

_LINES = (
    _encoded(
        "line-that-is-cut-off", "", Refused(5, names="rows.jsonl", says=("JSON",)), '{"messages": [{"role": "us'
    ),
    _encoded("line-that-is-a-list", "", Refused(5, names="rows.jsonl", says=("object",)), "[1, 2]"),
    _encoded(
        "line-nested-too-deeply", "", Refused(5, names="rows.jsonl", says=("deeply",)), '{"messages":' * 100_000
    ),
    _encoded(
        "line-with-not-a-number", "", Refused(5, names="rows.jsonl", says=("messages",)), '{"messages": NaN}'
    ),
    _encoded(
        "column-of-another-name",
        "llm-compressor#46",
        Refused(5, names="rows.jsonl", says=("column", "prompt")),
        {"prompt": "marmots"},
    ),
    _encoded(
        "same-row-a-hundred-times",
        "",
        Refused(5, names="rows.jsonl", says=("near-duplicates",)),
        *[_messages(_ANSWER)] * 100,
        among=0,
    ),
    _encoded(
        "too-little-text",
        "AutoAWQ#376",
        Refused(5, names="rows.jsonl", says=("tokens",)),
        _messages(_ANSWER),
        among=0,
    ),
    _encoded("empty-lines", "", Accepted(), "", "   "),
)


def _dataset(name: str, report: str, right: Refused, **source: str) -> Case:
    asked = {"dataset": "lab/rows", "revision": _ELSEWHERE, **source}
    return Case(
        name=name,
        report=report,
        kind=Kind.ROWS,
        place=Place.PLAN,
        entry={"calibration": {"sources": [asked]}},
        right=right,
    )


_PLANNED = (
    _dataset(
        "data-set-that-is-gone", "AutoAWQ#506", Refused(3, names="lab/rows", says=("missing", "builtin: prose"))
    ),
    Case(
        name="data-set-packed-otherwise",
        report="llm-compressor#1839",
        kind=Kind.ROWS,
        place=Place.PLAN,
        entry={"calibration": {"sources": [{"dataset": "lab/packed", "revision": PINNED, "split": "train"}]}},
        right=Refused(3, names="lab/packed", says=("parquet or jsonl",)),
    ),
)

_OTHERS = (
    Case(
        name="data-set-that-is-gone-since-the-plan",
        report="AutoAWQ#506",
        kind=Kind.ROWS,
        place=Place.PULL,
        entry={
            "calibration": {"sources": [{"dataset": "lab/packed", "revision": PINNED, "split": "test"}]},
            "evaluation": {"sources": [{"builtin": "stdlib"}]},  # the default ones are not on a local Hub
        },
        faults=(Fault(path="datasets/lab/packed", status=404, times=None),),
        right=Refused(3, names="lab/packed"),
    ),
    Case(
        name="too-little-text-to-measure-on",
        kind=Kind.ROWS,
        place=Place.EVALUATION,
        text="A line.\n",
        right=Refused(5, names="text.txt", says=("tokens",)),
    ),
    Case(
        name="binary-text-to-measure-on",
        kind=Kind.ROWS,
        place=Place.EVALUATION,
        text=gzip.compress(b"text" * 9999),
        right=Refused(5, names="text.txt", says=("UTF-8",)),
    ),
    Case(
        name="language-that-is-markup",
        kind=Kind.ROWS,
        place=Place.CARD,
        card={"row_languages": ("en", "<script>alert(1)</script>")},
        right=Accepted(never=("<script>",)),
    ),
    Case(
        name="file-name-that-is-markup",
        kind=Kind.ROWS,
        place=Place.CARD,
        card={"label": "a|b [x](javascript:alert(1)) <b>.jsonl"},
        right=Accepted(never=('href="javascript:', "<b>")),
    ),
)

CASES: tuple[Case, ...] = (*_PLANNED, *_CONVERSATIONS, *_LINES, *_OTHERS)
