"""A model in a plain folder: what the plan would refuse, found without torch, and hints without a watchlist."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from bot.checkpoint.config import open_config
from bot.checkpoint.constants import tool_versions
from bot.checkpoint.repo_files import VOCABULARY, is_vocabulary
from bot.checkpoint.weight_files import read_weight_headers
from bot.errors import ERRORS_BY_EXIT_CODE, UnsupportedModelError, UpstreamError
from bot.quantize.destination import check_replaceable
from bot.records import Details, Recipe, Skip, WatchEntry
from bot.watch.layers import model_types
from bot.watch.refusals import chosen_or_refusal

_CANNOT = "This version cannot quantize it."
# What hints about a watchlist's entry say, and what a person does who has none.
_OPTIONS = (
    (re.compile(r"`group_size: (\d+)`"), r"`--group-size \1`"),
    (re.compile(r"Set `method: (\S+)` in the entry's recipe\."), r"Use `--method \1`."),
    (
        re.compile(r"Set `max_unquantized_share` in the entry's recipe to allow it\."),
        "Only an entry of a watchlist can allow it, with `max_unquantized_share`.",
    ),
    (
        re.compile(r".*`trust_remote_code: true`.*"),
        "It needs its own code, which runs only for an entry of a watchlist with `trust_remote_code`.",
    ),
    (re.compile(r"; put it on `hold:`.*"), "."),
    (re.compile(r"Put it on `hold:`.*"), _CANNOT),
)


def check_folder(source: Path, out: Path, recipe: Recipe) -> None:
    """Raises what the plan would refuse the model for, and WatchlistError when out cannot be replaced."""
    check_replaceable(out)
    _, config = open_config(source)
    tensors = tuple(read_weight_headers(source).tensors.values())
    if not any(is_vocabulary(path.name) for path in source.iterdir()):
        raise UpstreamError(f"{source}: no tokenizer", hint=f"It is read from {', '.join(VOCABULARY)}.")
    model_type = config["model_type"]
    if model_type not in model_types():
        if _is_unknown(model_type):
            version = tool_versions().get("transformers")
            raise UnsupportedModelError(
                f"{source}: model_type {model_type!r}: transformers {version} does not know it",
                hint="It needs its own code: `trust_remote_code: true`" if "auto_map" in config else _CANNOT,
            )
        return  # only transformers can tell
    entry = WatchEntry(repo_id=str(source), target=str(out), recipe=recipe)
    decided = chosen_or_refusal(entry, Details(config=config, tensors=tensors))
    if isinstance(decided, Skip):
        reason = decided.reason.removeprefix("unsupported: ")
        raise ERRORS_BY_EXIT_CODE[decided.exit_code](f"{source}: {reason}", hint=decided.hint)


def hint_for_folders(hint: str) -> str:
    """The hint, for a person who uses options and no watchlist."""
    for written, said in _OPTIONS:
        hint = written.sub(said, hint)
    return hint


def _is_unknown(model_type: str) -> bool:
    """Whether the installed transformers has no model of this type. Importing it to ask takes seconds."""
    package = find_spec("transformers")
    folders = package.submodule_search_locations if package is not None else None
    lists = [Path(folder) / "models" / "auto" / name for folder in folders or () for name in _LISTS]
    return all(path.is_file() and f'"{model_type}"' not in path.read_text(encoding="utf-8") for path in lists)


_LISTS = ("auto_mappings.py", "configuration_auto.py")
