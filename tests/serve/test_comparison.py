"""An engine's answer against our own evaluation: what passes, and how what does not is named."""

from __future__ import annotations

from dataclasses import replace
from math import nan

import pytest

from bot.errors import QualityGateError
from bot.records import EngineAnswer
from bot.serve.comparison import MAX_MEAN_NATS, TIE_NATS, beyond, compare
from tests.support.engines import ANSWER, ENGINE, REFERENCE, served, shifted


def refusal(answer: EngineAnswer, dtype: str = "float16") -> str:
    with pytest.raises(QualityGateError) as caught:
        compare(ENGINE, REFERENCE, answer, artifact_dtype=dtype)
    assert caught.value.message.startswith("served with gptqmodel 7.6.0: ")
    return caught.value.message


def test_equal_answers_pass_with_their_figures() -> None:
    found = compare(ENGINE, REFERENCE, ANSWER, artifact_dtype="float16")
    assert (found.engine, found.version, found.kernel) == ("gptqmodel", "7.6.0", "TorchAtenAwqLinear")
    assert (found.tokens, found.mean_difference, found.max_difference) == (6, 0.0, 0.0)
    assert (found.new_tokens, found.tokens_per_s, found.agreement) == (3, 12.5, 1.0)


def test_a_mean_difference_up_to_the_bound_passes_and_beyond_it_is_refused_with_the_figures() -> None:
    found = compare(ENGINE, REFERENCE, shifted(ANSWER, 0.04), artifact_dtype="float16")
    assert found.mean_difference == pytest.approx(0.04)
    message = refusal(shifted(ANSWER, -0.06))
    assert "of 6 tokens differ from our evaluation's by 0.06 nats on average, at most 0.06" in message
    assert "allowed is 0.05 on average" in message


def test_an_artifact_in_bfloat16_may_differ_twice_as_much() -> None:
    assert compare(ENGINE, REFERENCE, shifted(ANSWER, 0.09), artifact_dtype="bfloat16")
    assert "allowed is 0.1 " in refusal(shifted(ANSWER, 0.11), "bfloat16")


def test_another_most_likely_token_is_refused_unless_it_is_a_tie() -> None:
    first, second = ANSWER.scores
    tie = replace(first, likeliest=(6, 1, 3))  # our margin is 0.1 there
    assert compare(ENGINE, REFERENCE, replace(ANSWER, scores=(tie, second)), artifact_dtype="float16")
    clear = replace(first, likeliest=(6, 3, 8))
    message = refusal(replace(ANSWER, scores=(clear, second)))
    assert "another token most likely than our evaluation at 20 % of the positions that are no tie" in message


def test_what_it_writes_must_be_what_it_finds_most_likely_but_for_ties() -> None:
    first, second = ANSWER.generated_scores

    def written(gap: float) -> EngineAnswer:
        off = replace(first, likeliest_log_probs=(-0.1, -0.5, -0.5 + gap))
        return replace(ANSWER, generated_scores=(off, second))

    assert compare(ENGINE, REFERENCE, written(TIE_NATS), artifact_dtype="float16")
    assert "token 2 that it wrote after prompt 1 is 0.4 nats less likely" in refusal(written(0.4))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (replace(ANSWER, scores=ANSWER.scores[:1]), "scores of 1 blocks, not 2"),
        (replace(ANSWER, generated=ANSWER.generated[:1]), "text after 1 prompts, not 2"),
        (replace(ANSWER, generated=((4, 4), ())), "it generated no token"),
        (
            replace(ANSWER, scores=(ANSWER.scores[0], replace(ANSWER.scores[1], log_probs=(-1.0,)))),
            "1 values for 4 tokens",
        ),
        (
            replace(ANSWER, generated_scores=(ANSWER.generated_scores[1], ANSWER.generated_scores[1])),
            "1 values for 4 tokens",
        ),
        (shifted(ANSWER, nan), "nan is not a finite number"),
        (replace(ANSWER, tokens_per_s=float("inf")), "inf is not a finite number"),
    ],
)
def test_an_answer_to_something_else_is_refused(answer: EngineAnswer, message: str) -> None:
    assert f"its answer is none: {message}" in refusal(answer)


def test_words_of_an_engine_are_cut_and_unknown_versions_left_out() -> None:
    long = replace(ANSWER, kernel="K\n" + "x" * 500, versions={"torch": "2\n.13", "evil": "1"})
    found = compare(ENGINE, REFERENCE, long, artifact_dtype="float16")
    assert len(found.kernel) <= 200
    assert "\n" not in found.kernel + found.versions["torch"]
    assert found.versions.keys() == {"torch"}


def test_figures_that_another_machine_recorded_are_judged_again() -> None:
    assert beyond(served(), artifact_dtype="float16") == []
    for wrong in ({"mean_difference": nan}, {"mean_difference": 0.2}, {"agreement": nan}, {"tokens_per_s": nan}):
        assert beyond(served(**wrong), artifact_dtype="float16")
    # Of a dtype that is none, the lower bound.
    assert beyond(served(mean_difference=MAX_MEAN_NATS["bfloat16"]), artifact_dtype="?")


def test_marlin_is_recognised_by_the_class() -> None:
    assert served(kernel="AWQMarlinLinearMethod").is_marlin
    assert not served().is_marlin
