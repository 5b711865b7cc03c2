"""Do a model's small files still work? Tried before a refresh is published, where no evaluation follows."""

from __future__ import annotations

from pathlib import Path

from bot.calibration.documents import Document
from bot.calibration.encoding import load_encoder
from bot.errors import QuantizationError

_TEXT = "The quick brown fox jumps over the lazy dog. 12 345.67 €, naïve café, 你好, def f(x): return x**2\n"
_QUESTION = ({"role": "user", "content": "What is 2 + 2?"},)


def try_tokenizer(folder: Path, *, trust_remote_code: bool) -> None:
    """The tokenizer loads, gives token ids that the vocabulary holds, and its chat template renders.

    Raises QuantizationError naming what does not work.
    """
    encoder = load_encoder(folder, trust_remote_code=trust_remote_code)
    ids = encoder.encode(Document(text=_TEXT, origin=folder.name))
    if not ids or max(ids) >= encoder.vocabulary:
        raise QuantizationError(
            f"{folder.name}: the tokenizer gives ids that are not in its vocabulary",
            hint="Its files upstream do not fit each other; nothing was published.",
        )
    if encoder.tokenizer.chat_template is not None:
        encoder.encode(Document(messages=_QUESTION, origin=f"{folder.name}: a question"))
