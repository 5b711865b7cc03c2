"""Every mistake is answered with where it is, what it is, and what to type instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.watch import SHA, TOP, mistakes

PIN = f"revision: {SHA}"
URL = "https://huggingface.co/Qwen/Qwen3-4B"


def assert_mistake(folder: Path, text: str, line: int, message: str, hint: str) -> None:
    found = mistakes(folder, text)
    assert [(item.line, message in item.message, hint in item.hint) for item in found][:1] == [(line, True, True)]
    assert len(found) == 1 or "is itself on the watchlist" in message
    assert found[0].file == str(folder / "watchlist.yaml")
    assert "\n" not in found[0].message


@pytest.mark.parametrize(
    ("keys", "message", "hint"),
    [
        # Unknown keys, and known ones in the wrong place.
        ("recipe: {search: gram}", "unknown key 'search'", "Did you mean `method: awq+gptq`?"),
        ("recipe: {search: awq}", "unknown key 'search'", "Did you mean `method: awq`?"),
        ("gate: {kl: 1}", "unknown key 'kl'", "Allowed keys: max_kl, min_top1"),
        ("licenses: {alow: [mit]}", "unknown key 'alow'", "Did you mean 'allow'?"),
        ("samples: 64", "unknown key 'samples'", "It belongs under `calibration`."),
        ("publish_to: x", "unknown key 'publish_to'", "at the top of the file"),
        # Names, and what YAML makes of words and numbers.
        ("target: hf.co/me/x", "target: hf.co/me/x is not valid", "'me/x'"),
        ("target: awq", "target: awq is not valid", "`owner/name`"),
        ("revision: 1.10", "YAML reads 1.10 as a number", "quotes: '1.10'"),
        (f"revision: {'1' * 40}", f"YAML reads {'1' * 40} as a number", "quotes"),
        ("revision: 2026-01-31", "YAML reads 2026-01-31 as a date", "quotes"),
        ("revision: 2026-02-30", "cannot read '2026-02-30'", "quotes"),
        ("revision: a b", "revision: a b is not valid", "a branch, a tag or a commit"),
        # The recipe.
        ("recipe: {bits: 8}", "bits: 8 is not allowed; expected 4", "4-bit"),
        (
            "recipe: {group_size: 100}",
            "group_size: 100 is not allowed; expected 32, 64 or 128",
            "Inference servers",
        ),
        ("recipe: {zero_point: no}", "zero_point: no is not allowed; expected true", "zero points"),
        ("recipe: awq", "recipe: expected a mapping, found awq", ""),
        ("recipe: {modules_to_not_convert: [gate]}", "modules_to_not_convert: gate is not valid", "full paths"),
        (
            "recipe: {max_unquantised_share: 0.3}",
            "unknown key 'max_unquantised_share'",
            "'max_unquantized_share'?",
        ),
        ("recipe: {max_unquantized_share: 30}", "max_unquantized_share: should be less than or equal to 1", "0.1"),
        ("recipe: {max_unquantized_share: -1}", "max_unquantized_share: should be greater than", "from 0 to 1"),
        ("recipe: {max_unquantized_share: 30 %}", "max_unquantized_share: should be a valid number", "0 to 1"),
        ("recipe: {max_unquantized_share: '1'}", "max_unquantized_share: should be a valid number", "the quotes"),
        ("max_unquantized_share: 0.3", "unknown key 'max_unquantized_share'", "It belongs under `recipe`."),
        # Gate, licences and the rest.
        ("gate: {max_unseen_expert: 0}", "unknown key 'max_unseen_expert'", "Did you mean 'max_unseen_experts'?"),
        ("gate: {max_unseen_experts: 5}", "max_unseen_experts: should be less than or equal to 1, not 5", "0.1"),
        ("gate: {max_kl: .nan}", "max_kl: should be a finite number, not .nan", "large"),
        ("gate: {max_kl: -.inf}", "max_kl: should be a finite number", ""),
        ("gate: {max_kl: yes}", "max_kl: should be a valid number, not yes", ""),
        ("gate: {min_top1: 85}", "min_top1: should be less than or equal to 1", "from 0 to 1"),
        ("licenses: {deny: other}", "deny: expected a list, found other", "[one, two]"),
        ("licenses: {allow: [MIT]}", "allow: MIT is not valid", "lower case"),
        ("priority: high", "priority: should be a valid integer, not high", ""),
        ("private: maybe", "private: should be a valid boolean", "true or false"),
        ("requantize: outdate", "outdate is not allowed", "Did you mean 'outdated'?"),
        ("hold: ''", "hold: should have at least 1 character", ""),
        ("hold: false", "hold: false is not a reason", "To go on, remove the line."),
        ("hold: yes", "hold: yes is not a reason", "`hold: waiting for v2`"),
    ],
)
def test_a_mistake_in_the_keys_of_a_model_is_named(tmp_path: Path, keys: str, message: str, hint: str) -> None:
    assert_mistake(tmp_path, f"{TOP}  - {{repo_id: a/b, {keys}}}", 3, message, hint)


@pytest.mark.parametrize(
    ("keys", "message", "hint"),
    [
        ("samples: 15", "samples: should be greater", ""),
        ("samples: 5000", "samples: should be less", ""),
        ("samples: '64'", "samples: should be a valid integer", "quotes"),
        ("samples: 64.0", "samples: should be a valid integer", ""),
        ("sources: []", "`sources` is empty", "- builtin: prose"),
        (
            f"sources: [{{builtin: stdlib, dataset: a/b, {PIN}}}]",
            "a source is one of `builtin`, `file` or `dataset`",
            "",
        ),
        ("sources: [{weight: 2}]", "a source is one of", ""),
        ("sources: [{file: [1]}]", "file: should be a valid string", ""),
        ("sources: [{file: {a: 1}}]", "file: should be a valid string", ""),
        ("sources: [{datset: a/b}]", "unknown key 'datset'", "Did you mean 'dataset'?"),
        ("sources: [{builtin: stdlb}]", "builtin: stdlb is not allowed", "Did you mean 'stdlib'?"),
        ("sources: [{dataset: a/b}]", "a data set needs `revision`, the full commit sha", "revision: <full sha>"),
        ("sources: [{dataset: a/b, revision: main}]", "revision: main is not valid", "the full 40-character sha"),
        ("sources: [{builtin: stdlib, split: train}]", "`split` is for data sets only", ""),
        ("sources: [{file: texts.csv}]", "file: texts.csv is not valid", ".jsonl"),
        ('sources: [{file: "a\\0.txt"}]', "cannot be read: no such name", ""),
    ],
)
def test_a_mistake_in_the_calibration_is_named(tmp_path: Path, keys: str, message: str, hint: str) -> None:
    assert_mistake(tmp_path, f"{TOP}  - {{repo_id: a/b, calibration: {{{keys}}}}}", 3, message, hint)


GONE = "calibration file 'gone.txt' cannot be read: No such file or directory"
UNPINNED = "a/b: trust_remote_code without a pinned revision"


@pytest.mark.parametrize(
    ("models", "line", "message", "hint"),
    [
        # Keys, each on its line.
        ("  - repo_id: a/b\n    targt: a/c", 4, "unknown key 'targt'", "Did you mean 'target'?"),
        ("  - repo_id: a/b\n    recipe:\n      groupsize: 64", 5, "unknown key 'groupsize'", "'group_size'?"),
        ("  - repo_id: a/b\n    bits: 4", 4, "unknown key 'bits'", "It belongs under `recipe`."),
        ("  - target: a/b", 3, "key 'repo_id' is missing", "`- owner/name`"),
        ("", 2, "models: has no value", "Give it one, or remove the line."),
        ("  - a/b\n  -\n", 4, "models: has no value", ""),
        ("  - repo_id: a/b\n    hold:", 4, "hold: has no reason, so nothing is put on hold", "says why"),
        (
            "  - repo_id: a/b\n    calibration:\n      sources:\n        - file: gone.txt",
            6,
            GONE,
            "relative to the",
        ),
        ("  - repo_id: a/b\n    trust_remote_code: true", 4, UNPINNED, "full commit sha whose code you have read"),
        # Names.
        ("  - Qwen3-4B", 3, "repo_id: Qwen3-4B is not valid", "`owner/name`, as in the model's URL"),
        ("  - a/b/c", 3, "repo_id: a/b/c is not valid", "`owner/name`"),
        ("  - ../b", 3, "repo_id: ../b is not valid", "`owner/name`"),
        ("  - a/b--c", 3, "repo_id: a/b--c is not valid", "`owner/name`"),
        (f"  - {URL}", 3, f"repo_id: {URL} is not valid", "Did you mean 'Qwen/Qwen3-4B'?"),
        ("  - www.huggingface.co/a/b", 3, "repo_id: www.huggingface.co/a/b is not valid", "Did you mean 'a/b'?"),
        ("  - a/b@v1.0", 3, "repo_id: a/b@v1.0 is not valid", "'a/b' with `revision: v1.0`"),
        (f"  - a/{'x' * 100}", 3, "repo_id: should have at most 96 characters", ""),
        (f"  - a/{'x' * 90}", 3, "has more than 96 characters", "shorter `target`"),
        ("  - repo_id: no", 3, "repo_id: YAML reads no as false, not as text", "quotes: 'no'"),
        ("  - no", 3, "models: expected a mapping or `owner/name`, found no", ""),
        # Characters that cannot be seen.
        ("  - lab/A\u200b", 3, "repo_id: lab/A\\u200b is not valid", "U+200B (zero width space)"),
        ("  - lab/\ufeffA", 3, "repo_id: lab/\\ufeffA is not valid", "Did you mean 'lab/A'?"),
        ("  - lab/A\u00a0", 3, "repo_id: lab/A\\xa0 is not valid", "U+00A0 (no-break space)"),
        ("  - lab/\u202eA", 3, "repo_id: lab/\\u202eA is not valid", "right-to-left override"),
        ("  - {\u200brepo_id: lab/A, repo_id: lab/A}", 3, "unknown key '\\u200brepo_id'", "'repo_id'"),
        # Two models, one repo.
        ("  - lab/A\n  - other/a", 4, "other/a: publishes to me/a-awq, and so does line 3", "`target`"),
        ("  - lab/A\n  - lab/A", 4, "lab/A: publishes to me/A-awq, and so does line 3", "Remove one"),
        ("  - lab/A\n  - {repo_id: ME/a-AWQ, target: me/x}", 3, "me/A-awq is itself on the watchlist", ""),
        ("  - {repo_id: lab/A, target: lab/a}", 3, "the target lab/a is itself on the watchlist", ""),
        # YAML. What is not closed is reported where it was opened.
        ("\t- a/b", 3, "a tab in the indentation", "spaces"),
        ("  - repo_id: a/b\n\ttarget: a/c", 4, "a tab in the indentation", "spaces"),
        ("  - a/b: c: d", 3, "not YAML", "Check indentation"),
        ("  - [a/b\n  - c/d\n", 3, "the bracket [ is not closed", "`]`"),
        ("  - {repo_id: a/b\n  - c/d\n", 3, "the bracket { is not closed", "`}`"),
        ("  - 'a/b\n  - c/d\n", 3, "the quote ' is not closed on its line", "Close it."),
        ('  - {repo_id: a/b, hold: "waiting\n  for v2"}\n  - a/c: d: e', 5, "not YAML", "Check indentation"),
        ("  - {repo_id: a/b, licenses: {\n  allow: [mit]}}\n  - a/c: d: e", 5, "not YAML", "Check indentation"),
    ],
)
def test_a_mistake_in_a_list_of_models_is_named_with_its_line(
    tmp_path: Path, models: str, line: int, message: str, hint: str
) -> None:
    assert_mistake(tmp_path, TOP + models, line, message, hint)


@pytest.mark.parametrize(
    ("keys", "message", "hint"),
    [
        ("match: x", "key 'author' is missing", "`author: Qwen`"),
        ("author: Qwen/Qwen3", "author: Qwen/Qwen3 is not valid", "without a slash"),
        ("author: a, mtach: x", "unknown key 'mtach'", "Did you mean 'match'?"),
        ("author: a, target: a/b", "unknown key 'target'", "name the account with `publish_to`"),
        ("author: a, repo_id: a/b", "unknown key 'repo_id'", "A single repo belongs under `models`."),
        ("author: a, samples: 64", "unknown key 'samples'", "It belongs under `calibration`."),
        ("author: a, match: Qwen/Q*", "match: Qwen/Q* is not valid", "without the owner"),
        ("author: a, exclude: [a b]", "exclude: a b is not valid", "such as `Qwen4-*`"),
        ("author: a, architectures: [a/b]", "architectures: a/b is not valid", "`Qwen3ForCausalLM`"),
        ("author: a, since: today", "since: should be a valid date, not today", "2026-01-31"),
        ("author: a, since: '2026-02-30'", "since: value error", ""),
        ("author: a, max_parameters: 8GB", "max_parameters: should be a valid integer", "70B"),
        ("author: a, max_parameters: 0", "max_parameters: should be greater than 0, not 0", ""),
        ("author: a, min_downloads: -1", "min_downloads: should be greater than or equal to 0", ""),
        ("author: a, limit: 1000", "limit: should be less than or equal to 100", ""),
        ("author: a, mode: propse", "propse is not allowed", "Did you mean 'propose'?"),
        ("author: a, tags: chat", "tags: expected a list, found chat", "[one, two]"),
        ("author: a, hold:", "hold: has no reason", "says why"),
        ("author: a, calibration: {sources: [{dataset: a/b}]}", "a data set needs `revision`", "full sha"),
        (
            "author: a, trust_remote_code: true",
            "trust_remote_code in a rule: no person has read",
            "under `models`",
        ),
        (
            f"author: a, trust_remote_code: true, {PIN}",
            "trust_remote_code in a rule",
            "`trust_remote_code: false`",
        ),
        ("author: a, publish_to: your-namespace", "only the example", "your user or organisation"),
    ],
)
def test_a_mistake_in_a_rule_is_named_with_its_line(tmp_path: Path, keys: str, message: str, hint: str) -> None:
    assert_mistake(tmp_path, f"publish_to: me\nmodels: []\ndiscover:\n  - {{{keys}}}\n", 4, message, hint)


EXAMPLE = "publishes to your-namespace, which is only the example"
TWICE = "key 'models' is there twice, first on line 1"


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        ("publish: me\nmodels: []", 1, "unknown key 'publish'", "Did you mean 'publish_to'?"),
        ("defaults:\n  recpie: {}\nmodels: []", 2, "unknown key 'recpie'", "Did you mean 'recipe'?"),
        ("defaults: {calibration: {sample: 64}}\nmodels: []", 1, "unknown key 'sample'", "'samples'?"),
        ("publish_to: me", 1, "key 'models' is missing", "Add `models:`"),
        ("models:\n  - a/b", 2, "a/b: nowhere to publish to", "Add `publish_to: your-namespace` at the top"),
        ("models:\n  - a/b\npublish_to: your-namespace", 3, EXAMPLE, "your user or organisation"),
        ("models: []\ndiscover:\n  - author: a", 3, "discover a: nowhere to publish to", "or to this rule"),
        (
            "models: []\npublish_to: your-namespace\ndiscover:\n  - author: a",
            2,
            EXAMPLE,
            "your user or organisation",
        ),
        ("models: []\ndiscover: Qwen", 2, "discover: expected a list, found Qwen", "[one, two]"),
        ("publish_to: me\nmodels: []\ndiscover: [Qwen]", 3, "discover: expected a mapping, found Qwen", ""),
        ("publish_to: me\ndefaults:\n  discover: []\nmodels: []", 3, "unknown key 'discover'", "top of the file"),
        ("publish_to: me\ndefaults:\nmodels: []", 2, "defaults: has no value", "remove the line"),
        ("publish_to: https://huggingface.co/me\nmodels: []", 1, "publish_to: https", "Did you mean 'me'?"),
        ("publish_to: me/\nmodels: []", 1, "publish_to: me/ is not valid", "Did you mean 'me'?"),
        ("publish_to: me/you\nmodels: []", 1, "publish_to: me/you is not valid", "without a slash"),
        ("publish_to: yes\nmodels: []", 1, "YAML reads yes as true", "quotes: 'yes'"),
        (
            "models: []  # none yet\n\n# mine\n  - a/b",
            1,
            "items follow the empty list `models: []`",
            "Remove `[]`.",
        ),
        ("publish_to: me\nmodels: []\n- a/b", 2, "items follow the empty list `models: []`", "Remove `[]`."),
        ("- a/b\n- c/d", 1, "expected a mapping, found a list", "`publish_to:`, `defaults:`, `models:` and"),
        ("", 1, "expected a mapping, found nothing", "`models:`"),
        ("# only a comment\n", 1, "expected a mapping, found nothing", "`models:`"),
        ("hello", 1, "expected a mapping, found text without keys", "`models:`"),
        ("models: []\npublish_to: a\nmodels: [a/b]", 3, TWICE, "Keep one"),
        ("models: &list [a/b]\nother: *list", 1, "anchors and aliases are not read", "`defaults`"),
        ("models: [*list]", 1, "anchors and aliases are not read", "`defaults`"),
        ("models: !!python/object:os.system []", 1, "the YAML tag", "Remove it."),
        ("publish_to: !!int me\nmodels: []", 1, "the YAML tag", "Remove it."),
        ("defaults: {gate: {max_kl: 1}\nmodels: []\n", 1, "the bracket { is not closed", "`}`"),
        ('publish_to: "me\nmodels:\n  - a/b\n', 1, 'the quote " is not closed on its line', "Close it."),
        ('publish_to: "me\nmodels:\n  - "a/b"\n', 1, 'the quote " is not closed on its line', "Close it."),
        ("models: []\n---\nmodels: []", 2, "a second document begins", "one document"),
        ("models: []\n? [a]\n: b", 2, "a key must be a plain word", ""),
        ("models: []\npublish_to: m\x07", 2, "not YAML: unacceptable character", ""),
        ("[" * 600, 1, "too deep to read", "the right file"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_line(
    tmp_path: Path, text: str, line: int, message: str, hint: str
) -> None:
    assert_mistake(tmp_path, text, line, message, hint)
