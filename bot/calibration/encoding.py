"""Documents to token ids, with the model's own tokenizer and chat template."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer

from bot.calibration.chat_template import ChatTemplate
from bot.calibration.conversations import without_surrogates
from bot.calibration.documents import Document
from bot.calibration.tokenizer_files import encodes_nothing, not_loaded, read_text_config
from bot.checkpoint.repo_files import CONFIG
from bot.errors import BotError, QuantizationError, UnsupportedModelError, UpstreamError, untrusted_input

# For templates that write today's date, where the date of the source's commit is not known. With the clock's, the
# same job would calibrate on other tokens after midnight.
UNKNOWN_DATE: Final = datetime.date(2025, 1, 1)

_TEXT = "The quick brown fox jumps over the lazy dog. 12 345.67 €, naïve café, 你好, def f(x): return x**2\n"


@dataclass(frozen=True)
class Encoder:
    """Encodes documents with a model's tokenizer.

    folder: the model's. config: of its text decoder, with transformers' defaults; empty without a config.json.
    date: what templates take for today.
    """

    tokenizer: Any
    folder: Path
    config: dict[str, Any]
    date: datetime.date

    @cached_property
    def bos_ids(self) -> list[int]:
        """The beginning-of-text token, if the tokenizer puts one before every text."""
        return [token for token in self._ids("", special=True)[:1] if token == self.tokenizer.bos_token_id]

    def encode(self, document: Document, *, special: bool = True) -> list[int]:
        """special: add the tokenizer's special tokens to a text; a chat has those of its template.

        For a model without a chat template, a conversation is encoded as text. Raises RefusedError for a
        conversation that the template refuses, QuantizationError when the template or the tokenizer is broken.
        """
        if document.messages and self.tokenizer.chat_template is not None:
            text = self._template.render(document.messages, document.origin)
            return self._ids(text, special=False, origin=document.origin)
        return self._ids(document.content, special=special, origin=document.origin)

    def encode_question(self, question: str) -> list[int]:
        """As a user asks it, up to where the answer begins; as text for a model without a chat template."""
        if self.tokenizer.chat_template is None:
            return self._ids(question, special=True)
        messages = ({"role": "user", "content": question},)
        text = self._template.render(messages, "a question", for_answer=True)
        return self._ids(text, special=False)

    def encode_text(self, text: str, special: bool) -> list[int]:
        """Of a text that is no document. Raises UpstreamError for an id that the model has no embedding for."""
        ids = self._ids(text, special=special)
        self.check_ids(ids)
        return ids

    @cached_property
    def prefix_id(self) -> int:
        """The token before a text without context. Raises UnsupportedModelError where there is none."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if type(token) is int:
                return token
        raise UnsupportedModelError(
            f"{self.folder}: the tokenizer has neither a beginning-of-text nor an end-of-text token",
            hint="Remove `tasks` from this entry.",
        )

    def text_ids(self, document: Document) -> list[int]:
        """Of the text alone, without special tokens and what a chat template adds."""
        return self._ids(document.content, special=False, origin=document.origin)

    def check_ids(self, ids: Iterable[int]) -> None:
        """Raises UpstreamError for an id that the model has no embedding for.

        The tokenizer may have fewer tokens than the model: embeddings are padded, and ids may have gaps.
        """
        size, highest = self.config.get("vocab_size"), max(ids, default=0)
        if type(size) is int and highest >= size:
            raise UpstreamError(
                f"{self.folder}: the tokenizer gives the id {highest}, but {CONFIG} has a vocab_size of {size}",
                hint="Its files upstream do not belong together.",
            )

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, self.folder, date=self.date)

    def _ids(self, text: str, *, special: bool, origin: str = "a text") -> list[int]:
        def failed(reason: str) -> QuantizationError:
            return QuantizationError(
                f"the tokenizer in {self.folder} cannot encode {origin}: {reason}",
                hint="Look at the tokenizer's files, such as tokenizer.json, of the source repo.",
            )

        with untrusted_input(failed):
            encoded = self.tokenizer(without_surrogates(text)[0], add_special_tokens=special)
            return [int(token) for token in encoded["input_ids"]]


def load_encoder(
    tokenizer_folder: Path, *, trust_remote_code: bool, date: datetime.date = UNKNOWN_DATE
) -> Encoder:
    """The tokenizer of a model folder, from local files alone, after it has encoded a sentence.

    Raises QuantizationError when it does not load, UpstreamError when it encodes the sentence to nothing or to ids
    that the model does not have, EnvironmentProblem when a package is missing, UnsupportedModelError when
    config.json is to blame.
    """

    def failed(reason: str) -> BotError:
        return not_loaded(tokenizer_folder, reason, trust_remote_code=trust_remote_code)

    with untrusted_input(failed):
        config = read_text_config(tokenizer_folder, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(
            tokenizer_folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
        # No warning about documents longer than the model's context, which are cut into blocks. Where it is no
        # number, such as "4096", transformers fails at every text.
        tokenizer.model_max_length = sys.maxsize
    encoder = Encoder(tokenizer, folder=tokenizer_folder, config=config, date=date)
    ids = encoder.encode(Document(text=_TEXT, origin="a sentence"))
    if not ids:
        raise encodes_nothing(tokenizer_folder)
    encoder.check_ids(ids)
    return encoder
