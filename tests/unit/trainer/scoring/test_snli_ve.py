"""SNLI-VE's accuracy is the share of right labels, over all pairs and over those of each true label."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.scoring.snli_ve import LABELS, score_snli_ve

labels = st.sampled_from(LABELS)
pairs = st.dictionaries(st.integers(0, 50).map(str), st.tuples(labels, labels), min_size=1)


def split(rows: dict[str, tuple[str, str]]) -> tuple[dict[str, str], dict[str, str]]:
    return {name: true for name, (true, _) in rows.items()}, {name: given for name, (_, given) in rows.items()}


def test_each_true_label_has_its_own_accuracy():
    true = {"1": "entailment", "2": "neutral", "3": "neutral", "4": "contradiction"}
    predicted = {"1": "neutral", "2": "neutral", "3": "entailment", "4": "contradiction", "5": "neutral"}
    result = score_snli_ve(true, predicted)
    assert result.accuracy == 0.5
    assert result.per_label == {"entailment": 0.0, "neutral": 0.5, "contradiction": 1.0}
    assert result.num_pairs == {"entailment": 1, "neutral": 2, "contradiction": 1}


def test_a_label_that_no_pair_has_has_no_accuracy():
    assert score_snli_ve({"1": "neutral"}, {"1": "entailment"}).per_label == {"neutral": 0.0}


@settings(deadline=None, max_examples=60)
@given(rows=pairs)
def test_the_accuracy_is_the_mean_of_its_parts_weighted_by_their_pairs(rows):
    result = score_snli_ve(*split(rows))
    assert result.accuracy == sum(true == given for true, given in rows.values()) / len(rows)
    assert sum(result.num_pairs.values()) == len(rows)
    weighted = sum(result.per_label[label] * count for label, count in result.num_pairs.items())
    assert result.accuracy == pytest.approx(weighted / len(rows))


@settings(deadline=None, max_examples=60)
@given(rows=pairs, seed=st.randoms(use_true_random=False))
def test_the_order_of_the_pairs_does_not_matter(rows, seed):
    true, predicted = split(rows)
    names = list(true)
    seed.shuffle(names)
    assert score_snli_ve({name: true[name] for name in names}, predicted) == score_snli_ve(true, predicted)
