"""The tokenizer's files: missing, damaged, of an old format, or for another model."""

from __future__ import annotations

import json
from typing import Any

from tests.bad_input.case import Accepted, Case, Change, Kind, Place, Refused
from tests.bad_input.stored import repeated_key, tokenizer, tokenizer_config

_VOCABULARY, _SETTINGS = "tokenizer.json", "tokenizer_config.json"
_CHAT = "<|im_start|>user\nWhy?<|im_end|>"  # what the small model's template makes


def _planned(name: str, report: str, files: dict[str, Change], right: Refused | Accepted) -> Case:
    return Case(name=name, report=report, kind=Kind.TOKENIZER, place=Place.PLAN, files=files, right=right)


def _tried(name: str, report: str, files: dict[str, Change], right: Refused | Accepted) -> Case:
    return Case(name=name, report=report, kind=Kind.TOKENIZER, place=Place.TOKENIZER, files=files, right=right)


def _far_ids(found: dict[str, Any]) -> None:
    """Every id is beyond the model's vocabulary."""
    found["model"]["vocab"] = {word: number + 5000 for word, number in found["model"]["vocab"].items()}


def _with_hole(found: dict[str, Any]) -> None:
    """Three ids are no token's, as they are when a token is taken out by hand."""
    found["added_tokens"][-1]["id"] = 2046


_PLANNED = (
    _planned("nothing-to-read-text-with", "", {_VOCABULARY: None}, Refused(3, names="tokenizer")),
    _planned(
        "a-setting-twice",
        "",
        {_SETTINGS: repeated_key(tokenizer_config(), "eos_token", "<|endoftext|>")},
        Refused(3, names=_SETTINGS, says=("eos_token", "twice")),
    ),
    _planned("settings-are-a-list", "", {_SETTINGS: "[]"}, Refused(3, names=_SETTINGS)),
    _planned("settings-are-cut-off", "", {_SETTINGS: tokenizer_config()[:-20]}, Refused(3, names=_SETTINGS)),
    _planned(
        "git-lfs-pointer",
        "exllama#242",
        {_VOCABULARY: "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 700\n"},
        Refused(3, names=_VOCABULARY, says=("lfs pointer",)),
    ),
    _planned("no-settings", "", {_SETTINGS: None}, Accepted()),
)

_LOADED = (
    _tried(
        "words-alone",
        "",
        {_VOCABULARY: None, "vocab.txt": "the\nquick\nfox\n"},
        Refused(3, names="tokenizer", never=("Add text",)),
    ),
    _tried(
        "sentencepiece-that-is-none",
        "transformers#36291",
        {
            _VOCABULARY: None,
            "tokenizer.model": b"\x0a\x0enot a model",
            _SETTINGS: tokenizer_config(tokenizer_class="LlamaTokenizer"),
        },
        Refused(5, names="tokenizer.model", never=("tiktoken",)),
    ),
    _tried(
        "merge-longer-than-any-word",
        "tokenizers#2094",
        {
            _VOCABULARY: tokenizer(
                lambda found: found["model"].update(
                    vocab={"a": 0, "b": 1, "c": 2}, merges=[["a", "b"], ["ab", "c"]]
                )
            )
        },
        Refused(5, names=_VOCABULARY),
    ),
    _tried(
        "model-of-no-kind",
        "tokenizers#566",
        {_VOCABULARY: tokenizer(lambda found: found.update(model={"vocab": {"a": 0}}))},
        Refused(5, names=_VOCABULARY),
    ),
    _tried(
        "splitter-of-another-version",
        "transformers#31789",
        {
            _VOCABULARY: tokenizer(
                lambda found: found.update(pre_tokenizer={"type": "FromTomorrow", "prepend": True})
            )
        },
        Refused(5, names=_VOCABULARY),
    ),
    _tried("cut-off", "", {_VOCABULARY: tokenizer(lambda found: None)[:-500]}, Refused(5, names=_VOCABULARY)),
    _tried("null", "", {_VOCABULARY: "null"}, Refused(5, names=_VOCABULARY)),
    _tried(
        "expression-that-is-none",
        "",
        {
            _VOCABULARY: tokenizer(
                lambda found: found.update(
                    pre_tokenizer={
                        "type": "Split",
                        "pattern": {"Regex": "(["},
                        "behavior": "Isolated",
                        "invert": False,
                    }
                )
            )
        },
        Refused(5, names=_VOCABULARY),
    ),
    _tried(
        "vocabulary-is-empty",
        "",
        {_VOCABULARY: tokenizer(lambda found: found["model"].update(vocab={}, merges=[]))},
        Refused(3, names="tokenizer"),
    ),
)

_SETTING = (
    _tried(
        "special-tokens-are-a-list",
        "transformers#47110",
        {
            _SETTINGS: tokenizer_config(
                without=("additional_special_tokens",), extra_special_tokens=["<|im_start|>"]
            )
        },
        Accepted(says=(_CHAT,)),
    ),
    _tried(
        "special-tokens-under-two-keys",
        "transformers#47838",
        {_SETTINGS: tokenizer_config(extra_special_tokens={"image_token": "<|endoftext|>"})},
        Accepted(says=(_CHAT,)),
    ),
    _tried(
        "special-token-that-says-so-twice",
        "transformers#44313",
        {
            _SETTINGS: tokenizer_config(
                extra_special_tokens={
                    "image_token": {"content": "<|endoftext|>", "special": True, "__type": "AddedToken"}
                }
            )
        },
        Accepted(says=(_CHAT,)),
    ),
    _tried(
        "class-of-the-library",
        "mlx-lm#683",
        {_SETTINGS: tokenizer_config(tokenizer_class="TokenizersBackend")},
        Accepted(says=(_CHAT,)),
    ),
    _tried(
        "class-that-is-not-there",
        "transformers#42735",
        {_SETTINGS: tokenizer_config(tokenizer_class="CrowdTokenizer")},
        Accepted(says=(_CHAT,)),
    ),
    _tried(
        "class-of-another-model",
        "transformers#44179",
        {_SETTINGS: tokenizer_config(tokenizer_class="LlamaTokenizer")},
        Accepted(says=(_CHAT,)),
    ),
    _tried(
        "start-token-is-an-object",
        "text-generation-inference#1534",
        {
            _SETTINGS: tokenizer_config(
                bos_token={"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False}
            )
        },
        Accepted(says=(_CHAT,)),
    ),
    _tried(
        "start-token-is-a-number",
        "",
        {_SETTINGS: tokenizer_config(bos_token=2040)},
        Refused(5, names="tokenizer"),
    ),
    _tried(
        "length-is-endless", "", {_SETTINGS: tokenizer_config(model_max_length=10**30)}, Accepted(says=(_CHAT,))
    ),
    _tried("length-is-text", "", {_SETTINGS: tokenizer_config(model_max_length="4096")}, Accepted(says=(_CHAT,))),
    _tried(
        "code-of-its-own",
        "",
        {_SETTINGS: tokenizer_config(auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]}), "own.py": "1 / 0\n"},
        Accepted(says=(_CHAT,)),
    ),
)

_IDS = (
    _tried(
        "hole-in-the-ids",
        "transformers#9246",
        {_VOCABULARY: tokenizer(_with_hole), _SETTINGS: tokenizer_config(without=("added_tokens_decoder",))},
        Accepted(says=(_CHAT,)),
    ),
    _tried("fewer-words-than-rows", "vllm#340", {}, Accepted(says=(_CHAT,))),
    _tried(
        "ids-beyond-the-vocabulary",
        "vllm#11980",
        {_VOCABULARY: tokenizer(_far_ids)},
        Refused(3, names="tokenizer", says=("vocab_size",)),
    ),
    _tried(
        "added-tokens-of-a-finetune",
        "CTranslate2#1415",
        {"added_tokens.json": json.dumps({"<pad>": 2048})},
        Accepted(says=(_CHAT,)),
    ),
)

_ENCODED = (
    Case(
        name="ids-beyond-the-vocabulary",
        report="vllm#11980",
        kind=Kind.TOKENIZER,
        place=Place.LAYERS,
        files={_VOCABULARY: tokenizer(_far_ids)},
        right=Refused(3, names="tokenizer", says=("vocab_size",)),
    ),
    Case(
        name="hole-in-the-ids",
        report="transformers#9246",
        kind=Kind.TOKENIZER,
        place=Place.LAYERS,
        files={_VOCABULARY: tokenizer(_with_hole)},
        right=Accepted(says=("14 linears",)),
    ),
    Case(
        name="a-start-token-before-every-text",
        kind=Kind.TOKENIZER,
        place=Place.EVALUATION,
        files={_SETTINGS: tokenizer_config(bos_token="<|endoftext|>", add_bos_token=True)},
        right=Accepted(says=("perplexity as transformers",)),
    ),
    Case(
        name="no-settings",
        kind=Kind.TOKENIZER,
        place=Place.CARD,
        files={_SETTINGS: None, "chat_template.jinja": None},
        right=Accepted(says=("Once upon a time",), never=("Who are you?",)),
    ),
)

CASES: tuple[Case, ...] = (*_PLANNED, *_LOADED, *_SETTING, *_IDS, *_ENCODED)
