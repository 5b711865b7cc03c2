"""Chat templates as upstream writes them: what a template, and what a row is to blame for."""

from __future__ import annotations

import datetime
import random
import resource
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bot.calibration import chat_template
from bot.calibration.chat_template import RefusedError
from bot.calibration.documents import Document
from bot.calibration.encoding import UNKNOWN_DATE, Encoder, load_encoder
from bot.calibration.limits import limited
from bot.errors import QuantizationError
from tests.support.sandbox import ASSETS

CHAT = Document(
    messages=({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}),
    origin="a.jsonl:3",
)
SAID = "{% for message in messages %}{{ message.content }} {% endfor %}"
IN_CHATS = SAID + "{% if messages | length > 1 %}"
LOOPS = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3

Load = Callable[..., Encoder]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """The encoder of a model with this chat template."""
    ignored = shutil.ignore_patterns("model.safetensors")
    folder = shutil.copytree(ASSETS / "qwen3-tiny", tmp_path / "model", ignore=ignored)

    def load(template: str, date: datetime.date = UNKNOWN_DATE) -> Encoder:
        (folder / "chat_template.jinja").write_text(template)
        return load_encoder(folder, trust_remote_code=False, date=date)

    return load


def rendered(encoder: Encoder, chat: Document = CHAT) -> str:
    return str(encoder.tokenizer.decode(encoder.encode(chat)))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% if %}", "Expected an expression"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ raise_exception('no\nquestions') }}", "no questions"),
        ("{% for i in range(9999999) %}x{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "RecursionError"),
        ("{{ messages.__class__.__base__.__subclasses__()() }}", "unsafe"),
        ("an answer to everything", "leaves out what the user says"),
        ("", "leaves out what the user says"),
        (SAID + "{{ 'x' * 2000000000 }}", "needs more than 512 MiB of memory"),
        (SAID + "{{ '%0999999999d' % 1 }}", "needs more than 512 MiB of memory"),
        (
            "{% set all = namespace(x='ab') %}{% for i in range(60) %}{% set all.x = all.x ~ all.x %}{% endfor %}",
            "needs more than 512 MiB of memory",
        ),
        (SAID + "{{ 'x' * 1500000 }}", "makes 1,500,015 characters of 14"),
        (LOOPS, "takes more than 0.2 s"),
    ],
)
def test_a_template_that_cannot_render_a_question_is_broken(
    load: Load, template: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if template == LOOPS:
        monkeypatch.setattr(chat_template, "_CPU_S", 0.2)
    with pytest.raises(QuantizationError) as caught:
        load(template).encode(CHAT)
    assert "model/chat_template.jinja: the chat template fails on a simple question: " in caught.value.message
    assert reason in caught.value.message
    assert "report it to the model's authors" in caught.value.hint
    assert not isinstance(caught.value, RefusedError)


def test_the_file_that_a_broken_template_is_in_is_named(load: Load) -> None:
    folder = load(SAID).folder
    (folder / "chat_template.jinja").unlink()
    settings = folder / "tokenizer_config.json"
    whole = settings.read_text()
    named = '"chat_template": [{"name": "rag", "template": "x"}], '
    for added, problem in (('"chat_template": "{{ 1 / 0 }}", ', "division by zero"), (named, "no default")):
        settings.write_text(whole.replace("{", "{" + added, 1))
        with pytest.raises(QuantizationError, match=f"model/tokenizer_config.json: the chat template .*{problem}"):
            load_encoder(folder, trust_remote_code=False).encode(CHAT)


@pytest.mark.parametrize(
    ("refuses", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[9].content.strip() }}", "has no element 9"),
    ],
)
def test_a_template_that_renders_a_question_may_refuse_a_conversation(
    load: Load, refuses: str, reason: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        load(IN_CHATS + refuses + "{% endif %}").encode(CHAT)
    assert caught.value.message.startswith("a.jsonl:3: the model's chat template refuses the conversation: ")
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        (LOOPS, "takes more than 0.2 s"),
        ("{{ 'x' * 2000000000 }}", "needs more than"),
        ("{{ 'x' * 1500000 }}", "makes 1,500,014 characters of 12"),
    ],
)
def test_no_conversation_is_to_blame_for_a_broken_limit(
    load: Load, breaks: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "_CPU_S", 0.2)
    with pytest.raises(QuantizationError, match=f"the chat template fails on a.jsonl:3: {reason}") as caught:
        load(IN_CHATS + breaks + "{% endif %}").encode(CHAT)
    assert not isinstance(caught.value, RefusedError)


def test_all_conversations_together_may_take_only_so_long(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(SAID)
    encoder.encode(CHAT)
    monkeypatch.setattr(chat_template, "_CPU_S", 0)
    monkeypatch.setattr(chat_template, "_CPU_S_ON_AVERAGE", 0)
    monkeypatch.setattr(chat_template, "limited", lambda **limits: limited(cpu_s=9, memory_bytes=1 << 30))
    with pytest.raises(QuantizationError, match=r"a\.jsonl:3: 3 conversations took"):
        encoder.encode(CHAT)


def test_a_template_that_reads_parts_is_given_parts(load: Load) -> None:
    parts = "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
    template = "{% for message in messages %}<{{ message.role }}>" + parts + "{% endfor %}"
    assert rendered(load(template)) == "<user>Why?<assistant>Because."


def test_today_is_the_date_that_is_given(load: Load) -> None:
    template = SAID + "{{ strftime_now('%d %b %Y') }}"
    assert rendered(load(template)) == "Why? Because. 01 Jan 2025"
    dated = load(template, datetime.date(2024, 2, 29))
    # Another encoder of the same template does not change it.
    assert rendered(load(template)).endswith("2025")
    assert rendered(dated).endswith("29 Feb 2024")


def test_random_choices_are_the_same_each_time(load: Load) -> None:
    encoder = load(SAID + "{{ range(100000) | random }} {{ lipsum(n=1) }}")
    state = random.getstate()
    assert rendered(encoder) == rendered(encoder)
    assert random.getstate() == state


def test_limits_are_those_of_before_afterwards(load: Load) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF)
    load(SAID).encode(CHAT)
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF)) == before
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)


def test_templates_also_render_outside_the_main_thread(load: Load) -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(rendered(load(SAID))))
    thread.start()
    thread.join()
    assert found == ["Why? Because. "]
