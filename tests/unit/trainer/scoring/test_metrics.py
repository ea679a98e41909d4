import math
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.scoring.metrics import (
    ANSWER_CELLS,
    AnswerScores,
    LossSums,
    Share,
    is_exact_match,
    merge_over_ranks,
)

untimed = settings(deadline=None)
words = st.sampled_from(["yes", "no", "red", " Red ", "left  side", "left side"])
questions = st.lists(
    st.tuples(
        words,
        words,
        st.sampled_from([None, "query", "verify", "choose", "logical", "compare", "riddle"]),
        st.sampled_from([None, "obj", "attr", "cat", "rel", "global", "mood"]),
        st.integers(0, 3),
    ),
    max_size=40,
)


def scored(rows) -> AnswerScores:
    scores = AnswerScores.empty()
    for generated, gold, structural, semantic, *_ in rows:
        scores.add(generated, gold, structural=structural, semantic=semantic)
    return scores


def summed(vectors: list[list[float]]) -> list[float]:
    return [math.fsum(column) for column in zip(*vectors, strict=True)]


def test_only_the_generated_text_is_normalised():
    assert is_exact_match("  Left \n SIDE\t", "left side")
    assert not is_exact_match("red", "Red")
    assert not is_exact_match("left side", "left  side")
    assert not is_exact_match("red.", "red")


def test_query_is_open_and_every_other_type_is_binary():
    scores = scored([("a", "a", "query", None)] + [("a", "b", kind, None) for kind in ("verify", "choose", "riddle")])
    assert scores.as_metrics()["val/open"] == 1.0
    assert scores.as_metrics()["val/binary"] == 0.0
    assert scores.as_counts()["val/open/count"] == 1
    assert scores.as_counts()["val/binary/count"] == 3


def test_without_a_type_yes_and_no_are_binary_and_the_rest_is_open():
    scores = scored([("yes", "yes", None, None), ("yes", "no", None, None), ("red", "red", None, None)])
    assert scores.as_metrics("testdev") == {
        "testdev/accuracy": pytest.approx(2 / 3),
        "testdev/binary": 0.5,
        "testdev/open": 1.0,
    }


def test_a_query_answered_by_yes_is_still_open():
    assert scored([("yes", "yes", "query", None)]).as_metrics() == {
        "val/accuracy": 1.0,
        "val/open": 1.0,
        "val/structural/query": 1.0,
    }


def test_each_type_has_its_own_accuracy_and_an_unknown_type_is_other():
    scores = scored(
        [
            ("red", "red", "query", "attr"),
            ("blue", "red", "query", "attr"),
            ("yes", "yes", "verify", "mood"),
            ("no", "no", "riddle", "global"),
        ]
    )
    assert scores.as_metrics() == {
        "val/accuracy": 0.75,
        "val/binary": 1.0,
        "val/open": 0.5,
        "val/structural/verify": 1.0,
        "val/structural/query": 0.5,
        "val/structural/other": 1.0,
        "val/semantic/attr": 0.5,
        "val/semantic/global": 1.0,
        "val/semantic/other": 1.0,
    }
    assert scores.as_counts() == {
        "val/count": 4,
        "val/binary/count": 2,
        "val/open/count": 2,
        "val/structural/verify/count": 1,
        "val/structural/query/count": 2,
        "val/structural/other/count": 1,
        "val/semantic/attr/count": 2,
        "val/semantic/global/count": 1,
        "val/semantic/other/count": 1,
    }


def test_steps_and_words_have_cells_up_to_a_last_one_that_many_share():
    scores = AnswerScores.empty()
    for steps, words in ((0, 3), (8, 19), (9, 20), (23, 41)):
        scores.add("yes", "yes" if steps < 20 else "no", steps=steps, words=words)
    scores.add("yes", "yes")
    assert {name: value for name, value in scores.as_metrics().items() if "steps" in name or "length" in name} == {
        "val/steps/0": 1.0,
        "val/steps/8": 1.0,
        "val/steps/9+": 0.5,
        "val/length/3": 1.0,
        "val/length/19": 1.0,
        "val/length/20+": 0.5,
    }
    assert scores.as_counts()["val/steps/9+/count"] == 2


def test_nothing_seen_gives_no_metric_instead_of_a_division_by_zero():
    for scores in (AnswerScores.empty(), Share("itm_accuracy"), LossSums.empty(["answer"])):
        assert scores.as_metrics() == {}


@untimed
@given(rows=questions, world_size=st.integers(1, 4))
def test_answer_scores_do_not_depend_on_how_questions_are_split_over_ranks(rows, world_size):
    ranks = [scored(row for row in rows if row[-1] % world_size == rank) for rank in range(world_size)]
    vectors = [rank.to_vector() for rank in ranks]
    by_vector = AnswerScores.empty().with_vector(summed(vectors))
    assert by_vector == scored(rows) == reduce(add, ranks)
    assert by_vector.as_metrics() == scored(rows).as_metrics()


@untimed
@given(rows=questions)
def test_binary_and_open_questions_are_all_questions(rows):
    counts = scored(rows).as_counts()
    assert (
        counts.get("val/binary/count", 0) + counts.get("val/open/count", 0) == counts.get("val/count", 0) == len(rows)
    )


@untimed
@given(rows=questions)
def test_the_vector_has_the_same_length_on_every_rank_whatever_it_saw(rows):
    vector = scored(rows).to_vector()
    assert len(vector) == 2 * len(ANSWER_CELLS)
    assert all(type(value) is float for value in vector)


@untimed
@given(
    losses=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 8), st.sampled_from(["answer", "itm"]))),
    world_size=st.integers(1, 4),
)
def test_losses_agree_to_rounding_however_questions_are_split_over_ranks(losses, world_size):
    def total(rows) -> LossSums:
        sums = LossSums.empty(["answer", "itm"])
        for loss, weight, part in rows:
            sums.add(part, loss * weight, weight)
        return sums

    ranks = [total(losses[rank::world_size]) for rank in range(world_size)]
    by_vector = ranks[0].with_vector(summed([rank.to_vector() for rank in ranks]))
    expected = total(losses).as_metrics()
    assert by_vector.as_metrics() == pytest.approx(expected, rel=1e-9)
    assert reduce(add, ranks).as_metrics() == pytest.approx(expected, rel=1e-9)


def test_a_loss_is_the_mean_over_weights_and_not_the_mean_of_batch_means():
    sums = LossSums.empty(["answer", "itm"])
    sums.add("answer", 1.0, 1)
    sums.add("answer", 9.0, 3)
    assert sums.as_metrics() == {"val/answer_loss": 2.5}


def test_a_loss_that_is_nan_stays_visible():
    sums = LossSums.empty(["answer"])
    sums.add("answer", math.nan, 1)
    assert math.isnan(sums.as_metrics()["val/answer_loss"])


def test_three_kinds_of_scores_merge_in_a_single_collective():
    calls = []

    def doubled(vector: list[float]) -> np.ndarray:
        """Stands for two ranks that saw the same; a collective gives an array or a tensor."""
        calls.append(vector)
        return 2 * np.array(vector)

    losses = LossSums.empty(["itm"])
    losses.add("itm", 3.0, 2.0)
    answers = scored([("red", "red", "query", "attr"), ("no", "yes", "verify", "obj")])
    mine = [answers, Share("itm_accuracy", 3, 4), losses]
    merged = merge_over_ranks(mine, doubled)
    assert len(calls) == 1
    assert merged[0] == answers + answers
    assert merged[1] == Share("itm_accuracy", 6, 8)
    assert merged[1].as_metrics() == {"val/itm_accuracy": 0.75}
    assert merged[1].as_counts() == {"val/itm_accuracy/count": 8}
    assert merged[2] == losses + losses
    assert {type(value) for value in (*merged[0].count, *merged[0].correct)} == {int}
