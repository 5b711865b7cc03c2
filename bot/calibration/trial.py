"""Whether a model's small files work: before its weights are pulled, and before a refresh is published."""

from __future__ import annotations

from pathlib import Path

from transformers import GenerationConfig

from bot.calibration.documents import Document
from bot.calibration.encoding import Encoder, load_encoder
from bot.checkpoint.config import parse_config, text_settings
from bot.checkpoint.repo_files import CONFIG, GENERATION_CONFIG, is_companion
from bot.checkpoint.small_files import check_small_files
from bot.errors import UpstreamError, untrusted_input

_TEXT = "The quick brown fox jumps over the lazy dog. 12 345.67 €, naïve café, 你好, def f(x): return x**2\n"
_QUESTION = ({"role": "user", "content": "What is 2 + 2?"},)


def try_small_files(folder: Path, *, trust_remote_code: bool) -> None:
    """Load the tokenizer, encode a sentence, render the chat template and load the generation config.

    folder: with everything of the model but its weights. Raises UpstreamError or QuantizationError naming the file
    that does not work.
    """
    check_small_files({path.name: path.read_bytes() for path in folder.iterdir() if is_companion(path.name)})
    _try_generation_config(folder)
    encoder = load_encoder(folder, trust_remote_code=trust_remote_code)
    _try_tokenizer(encoder, folder)
    if encoder.tokenizer.chat_template is not None:
        encoder.encode(Document(messages=_QUESTION, origin="a question"))


def _try_tokenizer(encoder: Encoder, folder: Path) -> None:
    ids = encoder.encode(Document(text=_TEXT, origin="a sentence"))
    if not ids:
        raise UpstreamError(
            "the tokenizer encodes a sentence to no tokens", hint="Its files upstream are incomplete."
        )
    # The embedding may have more rows than the tokenizer has tokens, and the ids may have gaps.
    size = text_settings(parse_config((folder / CONFIG).read_bytes())).get("vocab_size")
    if isinstance(size, int) and max(ids) >= size:
        raise UpstreamError(
            f"the tokenizer gives the id {max(ids)}, but {CONFIG} has a vocab_size of {size}",
            hint="Its files upstream do not belong together.",
        )


def _try_generation_config(folder: Path) -> None:
    if (folder / GENERATION_CONFIG).is_file():
        with untrusted_input(lambda reason: UpstreamError(f"{GENERATION_CONFIG}: {reason}", hint=_LOOK)):
            GenerationConfig.from_pretrained(folder, local_files_only=True)


_LOOK = "It has to be corrected upstream."
