"""Confusions and curves of matching: counts that merge, over answers and thresholds."""

import numpy as np
import pytest

from trainer.reporting.confusion_picture import confusion_picture
from trainer.scoring.confusion import OTHER, Confusion
from trainer.scoring.matching_curve import THRESHOLDS, MatchingCurve
from trainer.scoring.metrics import merge_over_ranks


def test_the_most_frequent_answers_have_a_row_and_a_column_and_the_rest_one_together():
    confusion = Confusion.over({"no": 5, "red": 2, "yes": 9, "blue": 2}, most=3)
    assert confusion.shown == ("yes", "no", "blue", OTHER)
    for said, right in (("yes", "yes"), (" YES ", "no"), ("green", "no"), ("blue", "red")):
        confusion.add(said, right)
    assert confusion.counts.tolist() == [[1, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]
    assert confusion.as_metrics() == {}


def test_ranks_merge_by_addition():
    parts = [Confusion.over({"yes": 1}), MatchingCurve()]
    parts[0].add("yes", "yes")
    parts[1].add([1.0, 0.0], [1, 0])
    merged = merge_over_ranks(parts, lambda vector: [3 * value for value in vector])
    assert merged[0].counts.tolist() == [[3, 0], [0, 0]]
    assert merged[1].counts.sum() == 6
    assert parts[1].counts.sum() == 2


def test_a_curve_counts_what_is_at_least_as_likely_as_each_threshold():
    rng = np.random.default_rng(0)
    likely, matches = rng.random(1000), rng.integers(0, 2, 1000)
    curve = MatchingCurve()
    curve.add(likely[:400], matches[:400])
    curve.add(likely[400:], matches[400:])
    found = curve.precision_recall()
    for number in (0, 1, 50, 125, 126):
        taken = likely >= number / (THRESHOLDS - 1)
        assert found.true_positives[number] == (taken & (matches == 1)).sum()
        assert found.false_positives[number] == (taken & (matches == 0)).sum()
        assert found.true_negatives[number] == (~taken & (matches == 0)).sum()
        assert found.false_negatives[number] == (~taken & (matches == 1)).sum()
    assert found.precision[0] == pytest.approx(matches.mean())
    assert found.recall[0] == 1


def test_a_curve_of_nothing_is_0_and_nan_is_the_least_likely():
    curve = MatchingCurve()
    assert not np.any(curve.precision_recall())
    curve.add([float("nan")], [1])
    assert curve.counts[1, 0] == 1


def test_a_confusion_is_drawn_with_its_counts_darker_where_the_share_is_higher():
    confusion = Confusion.over({"yes": 2, "an answer that is far too long": 1})
    empty = confusion_picture(confusion)
    for _ in range(3):
        confusion.add("yes", "yes")
    confusion.add("no", "yes")
    drawn = confusion_picture(confusion)
    assert drawn.size == empty.size
    mean = np.asarray(drawn.convert("L")).mean()
    assert mean < np.asarray(empty.convert("L")).mean()
