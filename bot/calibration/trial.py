"""Whether a model's small files work: before its weights are pulled, and before a refresh is published."""

from __future__ import annotations

from pathlib import Path

from transformers import GenerationConfig

from bot.calibration.chat_template import QUESTION
from bot.calibration.documents import Document
from bot.calibration.encoding import load_encoder
from bot.checkpoint.repo_files import GENERATION_CONFIG, is_companion
from bot.checkpoint.small_files import check_small_files
from bot.errors import UpstreamError, untrusted_input


def try_small_files(folder: Path, *, trust_remote_code: bool) -> None:
    """Load the tokenizer, encode a sentence, render the chat template and load the generation config.

    folder: with everything of the model but its weights. Raises UpstreamError, QuantizationError or another
    BotError, naming the file that does not work.
    """
    check_small_files({path.name: path.read_bytes() for path in folder.iterdir() if is_companion(path.name)})
    _try_generation_config(folder)
    encoder = load_encoder(folder, trust_remote_code=trust_remote_code)
    if encoder.tokenizer.chat_template is not None:
        encoder.encode(Document(messages=QUESTION, origin="a question"))


def _try_generation_config(folder: Path) -> None:
    if (folder / GENERATION_CONFIG).is_file():
        with untrusted_input(lambda reason: UpstreamError(f"{GENERATION_CONFIG}: {reason}", hint=_LOOK)):
            GenerationConfig.from_pretrained(folder, local_files_only=True)


_LOOK = "It has to be corrected upstream."
