"""Fuzz the readers of what comes from elsewhere, guided by which code an input reaches.

`python -m tests.trust.fuzz TARGET SECONDS [FOLDER]` begins with the inputs in `corpus/TARGET`. FOLDER gets what
is found. A reader may refuse its input by name; anything else it raises is a fault, and ends the run.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
# Of each input; the readers have limits of their own, far above.
_LONGEST_BYTES = 4096

Target = Callable[[bytes], object]


def targets() -> dict[str, Target]:
    """Imported here, so that `main` can watch which lines run."""
    import httpx2  # noqa: PLC0415
    import yaml  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415
    from huggingface_hub.hf_api import ModelInfo  # noqa: PLC0415

    from bot.card.commands import Surroundings  # noqa: PLC0415
    from bot.card.lint import Expected, lint_card  # noqa: PLC0415
    from bot.checkpoint.config import parse_config, text_settings  # noqa: PLC0415
    from bot.checkpoint.config_values import (  # noqa: PLC0415
        check_values,
        doubtful_value,
        layer_count,
        most_tokens,
        quantized_as,
    )
    from bot.checkpoint.header import header_length, parse_header  # noqa: PLC0415
    from bot.checkpoint.kv_cache import kv_cache  # noqa: PLC0415
    from bot.checkpoint.repo_files import is_safe_path  # noqa: PLC0415
    from bot.checkpoint.small_files import check_small_files, has_chat_template, template_warnings  # noqa: PLC0415
    from bot.checkpoint.weight_files import shard_names, unheld_tensors  # noqa: PLC0415
    from bot.errors import BotError  # noqa: PLC0415
    from bot.hub.provenance import ProvenanceError, read_provenance  # noqa: PLC0415
    from bot.hub.session import wait_before_retry  # noqa: PLC0415
    from bot.hub.sources import _read_upstream  # noqa: PLC0415
    from bot.records import Upstream, WatchEntry  # noqa: PLC0415
    from bot.watch import watchlist as watchlists  # noqa: PLC0415

    scratch = Path(tempfile.mkdtemp(prefix="awq-bot-fuzz-"))

    def watchlist(data: bytes) -> None:
        path = scratch / "watchlist.yaml"
        path.write_bytes(data)
        with contextlib.suppress(BotError):
            assert all(isinstance(entry, WatchEntry) for entry in watchlists.load(path))

    def provenance(data: bytes) -> None:
        with contextlib.suppress(ProvenanceError):
            made = read_provenance(data)
            assert all(is_safe_path(file.path) for file in made.files)
            # What is printed and linked.
            assert all(str(run).isprintable() for run in (made.built_by, made.published_by) if run is not None)

    def header(data: bytes) -> None:
        with contextlib.suppress(BotError):
            length = header_length(data[:8], file_bytes=len(data), where="a file")
            parse_header(data[8 : 8 + length], file_bytes=len(data), where="a file")

    def card(data: bytes) -> None:
        try:
            metadata = yaml.safe_load(data)
            answer = {"id": "lab/model", "sha": "0" * 40, "siblings": [], "cardData": metadata}
            info = ModelInfo(**answer)  # type: ignore[no-untyped-call]
        except Exception:  # as the Hub and its client refuse it, which reading sources refuses by name
            return
        assert isinstance(_read_upstream("lab/model", info, endpoint="https://huggingface.co"), Upstream)

    def config(data: bytes) -> None:
        with contextlib.suppress(BotError):
            found = parse_config(data)
            check_values(found, range(2))
            assert isinstance(text_settings(found), Mapping)
            for look in (layer_count, most_tokens, quantized_as, doubtful_value):
                look(found)
            assert kv_cache(found, ()).problem

    def published_card(data: bytes) -> None:
        text = (CORPUS / "published_card" / "golden.md").read_text()
        around = Surroundings(target="quantized/Tiny-awq", source="lab/Tiny", source_sha="", tags=(), paths=())
        findings = lint_card(data, Expected(text=text, around=around))
        assert findings
        assert all(each.line <= data.count(b"\n") + 1 for each in findings)

    def index(data: bytes) -> None:
        found = as_json(data)
        if isinstance(found, dict):
            with contextlib.suppress(BotError):
                assert all(is_safe_path(name) for name in shard_names(found, where="the index"))
                unheld_tensors(found, {})

    def tokenizer(data: bytes) -> None:
        files = {"tokenizer_config.json": data}
        for look in (check_small_files, has_chat_template, template_warnings):
            with contextlib.suppress(BotError):
                look(files)

    def rate_limit(data: bytes) -> None:
        lines = [line.partition(":") for line in data.decode("latin-1").split("\n")]
        headers = {name.strip(): value.strip() for name, _, value in lines}
        try:
            request = httpx2.Request("GET", "https://hub")
            response = httpx2.Response(429, headers=headers, request=request)
        except (ValueError, UnicodeError):  # no header can be so
            return
        wait = wait_before_retry(HfHubHTTPError("no", response=response))
        assert isinstance(wait, bool) or 0 <= wait <= 330

    found = (watchlist, provenance, header, card, config, published_card, index, tokenizer, rate_limit)
    return {target.__name__: target for target in found}


def as_json(data: bytes) -> Any:
    """As the Hub's client and ours parse it before; None for what is no JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def main(name: str, seconds: str, folder: str) -> None:
    import atheris  # noqa: PLC0415 - there is a wheel for some machines only

    with atheris.instrument_imports(include=["bot"]):
        target = targets()[name]
    options = (
        f"-max_total_time={seconds}",
        f"-max_len={_LONGEST_BYTES}",
        f"-artifact_prefix={folder}/",
        "-timeout=20",
    )
    atheris.Setup([sys.argv[0], *options, folder, str(CORPUS / name)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else tempfile.mkdtemp())
