"""Every mistake is answered with where it is, what it is, and what to type instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.watch import SHA, TOP, mistakes

PIN = f"revision: {SHA}"


def model(keys: str) -> str:
    """A watchlist of one model with these keys, on line 3."""
    return f"{TOP}  - {{repo_id: a/b, {keys}}}"


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        # Unknown keys, at each level.
        ("publish: me\nmodels: []", 1, "unknown key 'publish'", "Did you mean 'publish_to'?"),
        ("defaults:\n  recpie: {}\nmodels: []", 2, "unknown key 'recpie'", "Did you mean 'recipe'?"),
        (TOP + "  - repo_id: a/b\n    targt: a/c", 4, "unknown key 'targt'", "Did you mean 'target'?"),
        (
            TOP + "  - repo_id: a/b\n    recipe:\n      groupsize: 64",
            5,
            "unknown key 'groupsize'",
            "Did you mean 'group_size'?",
        ),
        (
            "defaults: {calibration: {sample: 64}}\nmodels: []",
            1,
            "unknown key 'sample'",
            "Did you mean 'samples'?",
        ),
        (
            TOP + "  - repo_id: a/b\n    calibration:\n      sources:\n        - datset: a/b",
            6,
            "unknown key 'datset'",
            "Did you mean 'dataset'?",
        ),
        (model("recipe: {search: gram}"), 3, "unknown key 'search'", "Did you mean `method: awq+gptq`?"),
        (model("recipe: {search: awq}"), 3, "unknown key 'search'", "Did you mean `method: awq`?"),
        (model("gate: {kl: 1}"), 3, "unknown key 'kl'", "Known here: max_kl, min_top1"),
        (model("licenses: {alow: [mit]}"), 3, "unknown key 'alow'", "Did you mean 'allow'?"),
        # Known keys in the wrong place.
        (TOP + "  - repo_id: a/b\n    bits: 4", 4, "unknown key 'bits'", "It belongs under `recipe`."),
        (model("samples: 64"), 3, "unknown key 'samples'", "It belongs under `calibration`."),
        (model("publish_to: x"), 3, "unknown key 'publish_to'", "at the top of the file"),
        # What is missing.
        (TOP + "  - target: a/b", 3, "key 'repo_id' is missing", "`- owner/name`"),
        ("publish_to: me", 1, "key 'models' is missing", "Add `models:`"),
        ("models:\n  - a/b", 2, "a/b: nowhere to publish to", "Add `publish_to: your-namespace` at the top"),
        (
            "models:\n  - a/b\npublish_to: your-namespace",
            3,
            "publishes to your-namespace, which is only the example",
            "your user or organisation",
        ),
        (TOP, 2, "models: has no value", "Give it one, or remove the line."),
        ("publish_to: me\ndefaults:\nmodels: []", 2, "defaults: has no value", "remove the line"),
        (TOP + "  - a/b\n  -\n", 4, "models: has no value", ""),
        # Names.
        (TOP + "  - Qwen3-4B", 3, "repo_id: Qwen3-4B is not valid", "`owner/name`, as in the model's URL"),
        (TOP + "  - a/b/c", 3, "repo_id: a/b/c is not valid", "`owner/name`"),
        (TOP + "  - ../b", 3, "repo_id: ../b is not valid", "`owner/name`"),
        (TOP + "  - a/b--c", 3, "repo_id: a/b--c is not valid", "`owner/name`"),
        *(
            (TOP + f"  - {pasted}", 3, f"repo_id: {pasted} is not valid", "Did you mean 'Qwen/Qwen3-4B'?")
            for pasted in (
                "https://huggingface.co/Qwen/Qwen3-4B",
                "https://huggingface.co/Qwen/Qwen3-4B/tree/main",
                "https://hub.example/Qwen/Qwen3-4B/",
                "hf.co/Qwen/Qwen3-4B?library=vllm",
                "www.huggingface.co/Qwen/Qwen3-4B",
                "Qwen/Qwen3-4B/",
                "Qwen/Qwen3-4B@main",
            )
        ),
        (TOP + "  - a/b@v1.0", 3, "repo_id: a/b@v1.0 is not valid", "'a/b' with `revision: v1.0`"),
        (model("target: hf.co/me/x"), 3, "target: hf.co/me/x is not valid", "'me/x'"),
        ("publish_to: https://huggingface.co/me\nmodels: []", 1, "publish_to: https", "Did you mean 'me'?"),
        ("publish_to: me/\nmodels: []", 1, "publish_to: me/ is not valid", "Did you mean 'me'?"),
        # Characters that cannot be seen.
        (TOP + "  - lab/A\u200b", 3, "repo_id: lab/A\\u200b is not valid", "U+200B (zero width space)"),
        (TOP + "  - lab/\ufeffA", 3, "repo_id: lab/\\ufeffA is not valid", "Did you mean 'lab/A'?"),
        (TOP + "  - lab/A\u00a0", 3, "repo_id: lab/A\\xa0 is not valid", "U+00A0 (no-break space)"),
        (TOP + "  - lab/\u202eA", 3, "repo_id: lab/\\u202eA is not valid", "right-to-left override"),
        (TOP + "  - {\u200brepo_id: lab/A, repo_id: lab/A}", 3, "unknown key '\\u200brepo_id'", "'repo_id'"),
        (TOP + f"  - a/{'x' * 100}", 3, "repo_id: should have at most 96 characters", ""),
        (TOP + f"  - a/{'x' * 90}", 3, "has more than 96 characters", "shorter `target`"),
        (model("target: awq"), 3, "target: awq is not valid", "`owner/name`"),
        ("publish_to: me/you\nmodels: []", 1, "publish_to: me/you is not valid", "without a slash"),
        # What YAML makes of words and numbers.
        (TOP + "  - repo_id: no", 3, "repo_id: YAML reads no as false, not as text", "quotes: 'no'"),
        ("publish_to: yes\nmodels: []", 1, "YAML reads yes as true", "quotes: 'yes'"),
        (TOP + "  - no", 3, "models: expected keys and values or `owner/name`, found no", ""),
        (model("revision: 1.10"), 3, "YAML reads 1.10 as a number", "quotes: '1.10'"),
        (TOP + f"  - {{repo_id: a/b, revision: {'1' * 40}}}", 3, f"YAML reads {'1' * 40} as a number", "quotes"),
        (model("revision: 2026-01-31"), 3, "YAML reads 2026-01-31 as a date", "quotes"),
        (model("revision: 2026-02-30"), 3, "cannot read '2026-02-30'", "quotes"),
        (model("revision: a b"), 3, "revision: a b is not valid", "a branch, a tag or a commit"),
        # The recipe.
        (model("recipe: {bits: 8}"), 3, "bits: 8 is not possible, only 4", "4-bit"),
        (
            model("recipe: {group_size: 100}"),
            3,
            "group_size: 100 is not possible, only 32, 64 or 128",
            "Servers read",
        ),
        (model("recipe: {zero_point: no}"), 3, "zero_point: no is not possible, only true", "zero points"),
        (model("recipe: awq"), 3, "recipe: expected keys and values, found awq", ""),
        (
            model("recipe: {modules_to_not_convert: [gate]}"),
            3,
            "modules_to_not_convert: gate is not valid",
            "full paths",
        ),
        # Calibration.
        (model("calibration: {samples: 15}"), 3, "samples: should be greater", ""),
        (model("calibration: {samples: 5000}"), 3, "samples: should be less", ""),
        (model("calibration: {samples: '64'}"), 3, "samples: should be a valid integer", "quotes"),
        (model("calibration: {samples: 64.0}"), 3, "samples: should be a valid integer", ""),
        (model("calibration: {sources: []}"), 3, "`sources` is empty", "- builtin: stdlib"),
        (
            model(f"calibration: {{sources: [{{builtin: stdlib, dataset: a/b, {PIN}}}]}}"),
            3,
            "a source is one of `builtin`, `file` or `dataset`",
            "",
        ),
        (model("calibration: {sources: [{weight: 2}]}"), 3, "a source is one of", ""),
        (
            model("calibration: {sources: [{builtin: stdlb}]}"),
            3,
            "builtin: stdlb is not possible",
            "Did you mean 'stdlib'?",
        ),
        (
            model("calibration: {sources: [{dataset: a/b}]}"),
            3,
            "a data set needs `revision`, the full commit sha",
            "revision: <full sha>",
        ),
        (
            model("calibration: {sources: [{dataset: a/b, revision: main}]}"),
            3,
            "revision: main is not valid",
            "the full 40-character sha",
        ),
        (
            model("calibration: {sources: [{builtin: stdlib, split: train}]}"),
            3,
            "`split` is for data sets only",
            "",
        ),
        (model("calibration: {sources: [{file: texts.csv}]}"), 3, "file: texts.csv is not valid", ".jsonl"),
        (
            TOP + "  - repo_id: a/b\n    calibration:\n      sources:\n        - file: gone.txt",
            6,
            "calibration file 'gone.txt' cannot be read: No such file or directory",
            "Paths are relative to the watchlist.",
        ),
        (model('calibration: {sources: [{file: "a\\0.txt"}]}'), 3, "cannot be read: no such name", ""),
        # Gate, licences and the rest.
        (model("gate: {max_kl: .nan}"), 3, "max_kl: should be a finite number, not .nan", "large"),
        (model("gate: {max_kl: -.inf}"), 3, "max_kl: should be a finite number", ""),
        (model("gate: {max_kl: yes}"), 3, "max_kl: should be a valid number, not yes", ""),
        (model("gate: {min_top1: 85}"), 3, "min_top1: should be less than or equal to 1", ""),
        (model("licenses: {deny: other}"), 3, "deny: expected a list, found other", "[one, two]"),
        (model("licenses: {allow: [MIT]}"), 3, "allow: MIT is not valid", "lower case"),
        (model("priority: high"), 3, "priority: should be a valid integer, not high", ""),
        (model("private: maybe"), 3, "private: should be a valid boolean", "true or false"),
        (model("requantize: outdate"), 3, "outdate is not possible", "Did you mean 'outdated'?"),
        (model("hold: ''"), 3, "hold: should have at least 1 character", ""),
        (model("hold: false"), 3, "hold: false is not a reason", "To go on, remove the line."),
        (model("hold: yes"), 3, "hold: yes is not a reason", "`hold: waiting for v2`"),
        (TOP + "  - repo_id: a/b\n    hold:", 4, "hold: has no reason, so nothing is put on hold", "says why"),
        (
            TOP + "  - repo_id: a/b\n    revision: main\n    trust_remote_code: true",
            5,
            "a/b: trust_remote_code without a pinned revision",
            "full commit sha whose code you have read",
        ),
        # Two models, one repo.
        (TOP + "  - lab/A\n  - other/a", 4, "other/a: publishes to me/a-awq, and so does line 3", "`target`"),
        (TOP + "  - lab/A\n  - lab/A", 4, "lab/A: publishes to me/A-awq, and so does line 3", "Remove one"),
        (TOP + "  - lab/A\n  - {repo_id: ME/a-AWQ, target: me/x}", 3, "me/A-awq is itself on the watchlist", ""),
        (TOP + "  - {repo_id: lab/A, target: lab/a}", 3, "the target lab/a is itself on the watchlist", ""),
        # YAML.
        ("- a/b\n- c/d", 1, "expected keys and values, found a list", "`publish_to:`, `defaults:` and `models:`"),
        ("", 1, "expected keys and values, found nothing", "`models:`"),
        ("# only a comment\n", 1, "expected keys and values, found nothing", "`models:`"),
        ("hello", 1, "expected keys and values, found text without keys", "`models:`"),
        (
            "models: []\npublish_to: a\nmodels: [a/b]",
            3,
            "key 'models' is there twice, first on line 1",
            "Keep one",
        ),
        ("models: &list [a/b]\nother: *list", 1, "anchors and aliases are not read", "`defaults`"),
        ("models: [*list]", 1, "anchors and aliases are not read", "`defaults`"),
        ("models: !!python/object:os.system []", 1, "the YAML tag", "Remove it."),
        ("publish_to: !!int me\nmodels: []", 1, "the YAML tag", "Remove it."),
        (TOP + "\t- a/b", 3, "a tab in the indentation", "spaces"),
        (TOP + "  - repo_id: a/b\n\ttarget: a/c", 4, "a tab in the indentation", "spaces"),
        (TOP + "  - a/b: c: d", 3, "not YAML", "Check indentation"),
        # A new watchlist has `models: []`.
        (
            "models: []  # none yet\n\n# mine\n  - a/b",
            1,
            "items follow the empty list `models: []`",
            "Remove `[]`.",
        ),
        ("publish_to: me\nmodels: []\n- a/b", 2, "items follow the empty list `models: []`", "Remove `[]`."),
        # What is not closed is reported where it was opened.
        (TOP + "  - [a/b\n  - c/d\n", 3, "the bracket [ is not closed", "`]`"),
        (TOP + "  - {repo_id: a/b\n  - c/d\n", 3, "the bracket { is not closed", "`}`"),
        ("defaults: {gate: {max_kl: 1}\nmodels: []\n", 1, "the bracket { is not closed", "`}`"),
        ('publish_to: "me\nmodels:\n  - a/b\n', 1, 'the quote " is not closed on its line', "Close it."),
        ('publish_to: "me\nmodels:\n  - "a/b"\n', 1, 'the quote " is not closed on its line', "Close it."),
        (TOP + "  - 'a/b\n  - c/d\n", 3, "the quote ' is not closed on its line", "Close it."),
        (model('hold: "waiting\n  for v2"') + "\n  - a/c: d: e", 5, "not YAML", "Check indentation"),
        (model("licenses: {\n  allow: [mit]}") + "\n  - a/c: d: e", 5, "not YAML", "Check indentation"),
        ("models: []\n---\nmodels: []", 2, "a second document begins", "one document"),
        ("models: []\n? [a]\n: b", 2, "a key must be a plain word", ""),
        ("models: []\npublish_to: m\x07", 2, "not YAML: unacceptable character", ""),
        ("[" * 600, 1, "too deep to read", "the right file"),
    ],
)
def test_a_mistake_is_answered_with_its_line_and_what_to_type(
    tmp_path: Path, text: str, line: int, message: str, hint: str
) -> None:
    found = mistakes(tmp_path, text)
    assert [(item.line, message in item.message, hint in item.hint) for item in found][:1] == [(line, True, True)]
    assert len(found) == 1 or "is itself on the watchlist" in message
    assert found[0].file == str(tmp_path / "watchlist.yaml")
    assert "\n" not in found[0].message
