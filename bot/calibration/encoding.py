"""Documents to token ids, with the model's own tokenizer and chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from bot.calibration.documents import Document
from bot.errors import QuantizationError, untrusted_input


@dataclass(frozen=True, slots=True)
class Encoder:
    """Encodes documents with a model's tokenizer."""

    tokenizer: Any

    @property
    def vocabulary(self) -> int:
        return len(self.tokenizer)

    @property
    def bos_ids(self) -> list[int]:
        """The beginning-of-text token, if the tokenizer puts one before every text."""
        return [token for token in self._ids("", special=True)[:1] if token == self.tokenizer.bos_token_id]

    def encode(self, document: Document, *, special: bool = True) -> list[int]:
        """special: add the tokenizer's special tokens to a text; a chat has those of its template.

        For a model without a chat template, a conversation is encoded as text.
        """
        if document.messages and self.tokenizer.chat_template is not None:
            return self._ids(self._render(document), special=False)
        return self._ids(document.content, special=special)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        # verbose=False: no warning about documents longer than the model's context, which are cut into blocks.
        return list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def _render(self, document: Document) -> str:
        def failed(reason: str) -> QuantizationError:
            return QuantizationError(
                f"{document.origin}: the model's chat template fails: {reason}",
                hint="Leave such conversations out of the file, or calibrate on plain text.",
            )

        with untrusted_input(failed):
            # transformers renders it in jinja2's ImmutableSandboxedEnvironment.
            return str(self.tokenizer.apply_chat_template(list(document.messages), tokenize=False))


def load_encoder(tokenizer_folder: Path, *, trust_remote_code: bool) -> Encoder:
    """The tokenizer of a model folder, from local files alone. Raises QuantizationError when it does not load."""

    def failed(reason: str) -> QuantizationError:
        return QuantizationError(
            f"the tokenizer in {tokenizer_folder} does not load: {reason}",
            hint="It needs its own code: read that, then allow it with `trust_remote_code: true`."
            if "trust_remote_code" in reason
            else "Check tokenizer.json and tokenizer_config.json of the source repo.",
        )

    with untrusted_input(failed):
        return Encoder(
            AutoTokenizer.from_pretrained(
                tokenizer_folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
        )
