"""Whether a model can be measured on the text that its entry names."""

from __future__ import annotations

from dataclasses import replace

from bot.checkpoint.small_files import has_chat_template
from bot.errors import WatchlistError
from bot.records import Details, Skip, TextSource, WatchEntry
from bot.watch.refusals import refuse
from bot.watch.schema import EvaluationSpec

_DEFAULT = tuple(TextSource(**source.model_dump()) for source in EvaluationSpec().sources)


def measurable(entry: WatchEntry, details: Details) -> WatchEntry | Skip:
    """The entry as the model can be measured, or the refusal: chats need a chat template.

    For a model without one the default text is that without its chats. What was asked for is not changed.
    """
    evaluation = entry.evaluation
    chats = [source for source in evaluation.sources if source.is_chat]
    if not chats or has_chat_template(details.small_files):
        return entry
    if evaluation.sources == _DEFAULT:
        others = tuple(source for source in evaluation.sources if not source.is_chat)
        return replace(entry, evaluation=replace(evaluation, sources=others))
    reason = f"evaluation: {chats[0].evaluation_label} holds chats, and the model has no chat template"
    return refuse(entry, reason, WatchlistError, "Set `evaluation: {sources: [...]}` of text in this entry.")
