"""What a watchlist may hold, and how its mistakes are reported."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from bot.errors import WatchlistError
from bot.records import Calibration, Evaluation, Licenses, Recipe, Signer, TextSource, Thresholds, WatchEntry
from bot.watch.watchlist import load, read, select
from tests.support.watch import SHA, TOP, loaded, mistakes

# --- what is understood -------------------------------------------------------------------------------------


def test_the_short_form_means_a_model_with_the_default_target(tmp_path: Path) -> None:
    (entry,) = loaded(tmp_path, TOP + "  - lab/Big-Model.v1_x\n")
    assert (entry.repo_id, entry.revision) == ("lab/Big-Model.v1_x", "main")
    assert (entry.target, entry.line) == ("me/Big-Model.v1_x-awq", 3)
    assert (entry.recipe, entry.gate) == (Recipe(), Thresholds())


def test_every_key_of_the_long_form_reaches_the_entry(tmp_path: Path) -> None:
    (entry,) = loaded(
        tmp_path,
        f"""\
models:
  - repo_id: lab/A
    revision: {SHA}
    target: other/A-int4
    recipe: {{bits: 4, group_size: 64, zero_point: true, version: gemm, method: awq,
             modules_to_not_convert: [model.layers.0.self_attn.q_proj], max_unquantized_share: 0.5}}
    calibration:
      samples: 64
      seq_len: 2048
      seed: 7
      sources:
        - {{dataset: lab/texts, revision: {SHA}, split: train, column: text, weight: 2}}
        - builtin: stdlib
    evaluation: {{tokens: 4096, sources: [{{dataset: lab/texts, revision: {SHA}, split: test}}]}}
    gate: {{max_kl: 1, min_top1: 0.5, max_perplexity_ratio: 2.5, max_unseen_experts: 1}}
    licenses: {{allow: [mit, llama3.1], deny: [other]}}
    hold: waiting for v2
    priority: -5
    private: true
    requantize: outdated
    trust_remote_code: true
    signed_by: me@example.org from https://accounts.example.org
""",
    )
    data_set = TextSource(dataset="lab/texts", revision=SHA, split="train", column="text", weight=2.0)
    assert entry == WatchEntry(
        repo_id="lab/A",
        revision=SHA,
        target="other/A-int4",
        recipe=Recipe(
            group_size=64,
            method="awq",
            modules_to_not_convert=("model.layers.0.self_attn.q_proj",),
            max_unquantized_share=0.5,
        ),
        calibration=Calibration(
            samples=64, seq_len=2048, seed=7, sources=(data_set, TextSource(builtin="stdlib"))
        ),
        evaluation=Evaluation(tokens=4096, sources=(TextSource(dataset="lab/texts", revision=SHA, split="test"),)),
        gate=Thresholds(max_kl=1.0, min_top1=0.5, max_perplexity_ratio=2.5, max_unseen_experts=1.0),
        licenses=Licenses(allow=("mit", "llama3.1"), deny=("other",)),
        hold="waiting for v2",
        priority=-5,
        private=True,
        requantize="outdated",
        trust_remote_code=True,
        signed_by=Signer(kind="identity", value="me@example.org", issuer="https://accounts.example.org"),
        line=2,
    )


def test_defaults_are_merged_key_by_key(tmp_path: Path) -> None:
    first, second = loaded(
        tmp_path,
        """\
publish_to: me
defaults:
  recipe: {group_size: 64, modules_to_not_convert: [model.layers.0.mlp]}
  calibration: {samples: 32, seed: 3, sources: [{builtin: stdlib}]}
  gate: {max_kl: 0.5}
  private: true
models:
  - lab/A
  - repo_id: lab/B
    recipe: {group_size: 32}
    calibration: {samples: 48}
    gate: {min_top1: 0.5}
    private: false
""",
    )
    assert (first.recipe.group_size, first.calibration.samples, first.private) == (64, 32, True)
    assert second.recipe == Recipe(group_size=32, modules_to_not_convert=("model.layers.0.mlp",))
    assert second.calibration == Calibration(samples=48, seed=3)
    assert second.gate == Thresholds(max_kl=0.5, min_top1=0.5)
    assert not second.private


def test_a_calibration_file_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for content in (b"one", b"two"):
        (tmp_path / "texts" / "chat.jsonl").write_bytes(content)
        text = TOP + "  - repo_id: lab/A\n    calibration: {sources: [{file: texts/chat.jsonl}]}\n"
        (entry,) = loaded(tmp_path, text)
        assert entry.calibration.sources[0].sha256 == hashlib.sha256(content).hexdigest()


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    (entry,) = loaded(tmp_path, b"\xef\xbb\xbf" + (TOP + "  - lab/A\n").replace("\n", "\r\n").encode())
    assert (entry.repo_id, entry.line) == ("lab/A", 3)


def test_one_source_may_have_two_targets(tmp_path: Path) -> None:
    entries = loaded(tmp_path, TOP + "  - lab/A\n  - {repo_id: lab/A, target: me/A-g32}\n")
    assert [entry.target for entry in entries] == ["me/A-awq", "me/A-g32"]


def test_a_thousand_models_are_read_in_seconds(tmp_path: Path) -> None:
    calibration = "    calibration:\n      sources: [{file: big.txt}]\n"
    models = "".join(f"  - repo_id: lab/m{number}\n{calibration}" for number in range(1000))
    (tmp_path / "big.txt").write_bytes(b"text " * 200_000)
    started = time.process_time()
    entries = loaded(tmp_path, TOP + models)
    assert len(entries) == 1000
    assert entries[-1].line == 3 + 3 * 999
    assert time.process_time() - started < 10


# --- what is reported ---------------------------------------------------------------------------------------


def test_text_that_is_not_utf8_is_reported_with_its_line(tmp_path: Path) -> None:
    (mistake,) = mistakes(tmp_path, b"publish_to: me\nmodels:\n  - a/b # caf\xe9\n")
    assert (mistake.line, mistake.message, mistake.hint) == (3, "not UTF-8 text", "Save the file as UTF-8.")


def test_a_file_of_megabytes_is_not_read(tmp_path: Path) -> None:
    started = time.process_time()
    (mistake,) = mistakes(tmp_path, "models: []\n" + "# comment\n" * 200_000)
    assert "too large" in mistake.message
    assert time.process_time() - started < 1


def test_a_file_that_is_not_there_is_reported_with_where_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(WatchlistError, match="No such file") as caught:
        load(tmp_path / "nothing.yaml")
    assert "--watchlist" in caught.value.hint
    with pytest.raises(WatchlistError, match="Is a directory"):
        load(tmp_path)


def test_a_calibration_file_must_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    sources = "[{file: texts.txt}, {file: pipe.txt}]"
    found = mistakes(tmp_path, f"{TOP}  - {{repo_id: a/b, calibration: {{sources: {sources}}}}}")
    assert [item.message.partition(": ")[2] for item in found] == ["not a file", "not a file"]


def test_every_mistake_is_reported_at_once_sorted_by_line(tmp_path: Path) -> None:
    found = mistakes(
        tmp_path,
        """\
publish_to: me
defaults:
  gate: {max_kl: -1}
  priority: 1
  priority: 2
  calibration: {sources: [{file: gone.txt, weight: 0}, {dataset: a/texts, colum: text}]}
models:
  - a/b
  - repo_id: x
    recipe: {bits: 3}
    revision: 2026-02-30
  - {repo: a/c, hold: no}
  - other/b
  - repo_id: a/d
    calibration: {sources: [{dataset: a/texts}, {builtin: stdlib, file: also-gone.txt}]}
    trust_remote_code: true
""",
    )
    assert [(item.line, item.message.partition(":")[0]) for item in found] == [
        (3, "max_kl"),
        (5, "key 'priority' is there twice, first on line 4"),
        (6, "weight"),
        (6, "unknown key 'colum'"),
        (6, "calibration file 'gone.txt' cannot be read"),
        (9, "repo_id"),
        (10, "bits"),
        (11, "cannot read '2026-02-30'"),
        (12, "hold"),
        (12, "key 'repo_id' is missing"),
        (12, "unknown key 'repo'"),
        (13, "other/b"),
        (15, "a data set needs `revision`, the full commit sha to pin it to"),
        (15, "a source is one of `builtin`, `file` or `dataset`"),
        (15, "calibration file 'also-gone.txt' cannot be read"),
        (16, "a/d"),
    ]


def test_a_mistake_in_the_defaults_is_reported_once_and_where_it_was_typed(tmp_path: Path) -> None:
    calibration = "  calibration:\n    sources:\n      - file: gone.txt\n"
    text = f"publish_to: me\ndefaults:\n{calibration}models: [a/b, a/c, a/d]\n"
    assert [item.line for item in mistakes(tmp_path, text)] == [5]


def test_the_examples_namespace_is_reported_where_it_stands(tmp_path: Path) -> None:
    text = TOP + "  - repo_id: lab/A\n    priority: 1\n    target: your-namespace/A-awq\n  - lab/B\n"
    (found,) = mistakes(tmp_path, text)
    assert (found.line, found.message.partition(":")[0]) == (5, "lab/A")
    assert "only the example" in found.message
    assert "`target`" in found.hint
    both = mistakes(tmp_path, text.replace("publish_to: me", "publish_to: your-namespace") + "  - lab/C\n")
    assert [item.line for item in both] == [1, 5]


def test_an_unknown_key_at_the_top_may_be_publish_to(tmp_path: Path) -> None:
    found = mistakes(tmp_path, "publish: me\nmodels: [lab/A, {repo_id: lab/B, target: lab/a}]\n")
    assert [item.message.split(" ")[0] for item in found] == ["unknown", "lab/B:"]


def test_a_flood_of_mistakes_is_cut_and_counted(tmp_path: Path) -> None:
    text = TOP + "".join(f"  - repo_id: a/b{number}\n    colour: red\n" for number in range(500))
    found = mistakes(tmp_path, text)
    assert len(found) == 101
    assert found[-1].message == "400 more mistakes from here on"


def test_the_error_shows_file_line_and_help_of_every_mistake_and_counts_them(tmp_path: Path) -> None:
    with pytest.raises(WatchlistError) as caught:
        loaded(tmp_path, "publish: me\nmodels: [x]")
    path = tmp_path / "watchlist.yaml"
    assert caught.value.message.splitlines() == [
        f"{path}:1: unknown key 'publish'",
        "  help: Did you mean 'publish_to'?",
        f"{path}:2: repo_id: x is not valid",
        "  help: A repo id is `owner/name`, as in the model's URL.",
        "2 mistakes",
    ]
    assert caught.value.exit_code == 2


RULES = """\
publish_to: me
defaults: {priority: 1, recipe: {group_size: 64}}
models: []
discover:
  - author: Qwen
    match: Qwen4-*
    since: 2026-01-31
    max_parameters: 1.5B
    recipe: {method: awq}
    calibration: {sources: [{file: own.txt}]}
  - {author: lab, since: '2026-02-01', mode: publish, publish_to: other, hold: later}
"""


def test_a_rule_has_settings_for_what_it_finds(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("Words.\n")
    (tmp_path / "watchlist.yaml").write_text(RULES)
    first, second = read(tmp_path / "watchlist.yaml").rules
    assert (first.author, first.match, first.since, first.max_parameters) == (
        "Qwen",
        ("Qwen4-*",),
        "2026-01-31",
        1_500_000_000,
    )
    assert (first.mode, first.publish_to, first.line, first.limit) == ("propose", "me", 5, 20)
    assert (first.entry.priority, first.entry.recipe.method, first.entry.recipe.group_size) == (1, "awq", 64)
    assert first.entry.found
    # As they are typed in the rule: what `defaults` say holds for a new entry anyway.
    assert first.settings == ("recipe: {method: awq}", "calibration: {sources: [{file: own.txt}]}")
    assert (second.since, second.mode, second.publish_to, second.entry.hold) == (
        "2026-02-01",
        "publish",
        "other",
        "later",
    )


def test_one_model_is_chosen_or_looked_for_among_its_owners_repos(tmp_path: Path) -> None:
    path = tmp_path / "watchlist.yaml"
    path.write_text("publish_to: me\nmodels: [lab/A, x/B]\ndiscover: [{author: Lab}, {author: other}]\n")
    whole = read(path)
    assert select(whole, None, path=path) == whole
    chosen = select(whole, "lab/A", path=path)
    assert ([entry.repo_id for entry in chosen.entries], chosen.rules) == (["lab/A"], ())
    searched = select(whole, "lab/New", path=path)
    assert (searched.entries, [rule.author for rule in searched.rules]) == ((), ["Lab"])
    with pytest.raises(WatchlistError, match="x/C is not on"):
        select(whole, "x/C", path=path)
