"""NLVR2's accuracy and consistency are the official script's, in whatever order the pairs come."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.scoring.nlvr2 import consistency, score_nlvr2, sentence_of
from trainer.scoring.nlvr2_files import read_labels, read_predictions

GOLDEN = Path(__file__).parents[3] / "golden" / "tasks"
"""Pairs and predictions, what the official script prints of them, and lines of the official dev.json."""

untimed = settings(deadline=None, max_examples=60)

pairs = st.dictionaries(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 1)).map(
        lambda numbers: "dev-{}-{}-{}".format(*numbers)
    ),
    st.tuples(st.booleans(), st.booleans()),
    min_size=1,
)


def ignored(_: int) -> None:
    pass


def test_both_scores_are_those_of_the_official_script():
    expected = json.loads((GOLDEN / "nlvr2.json").read_text())
    labels = read_labels(GOLDEN / "nlvr2.jsonl", ignored)
    predictions, num_unknown = read_predictions(GOLDEN / "nlvr2.csv", labels, ignored)
    result = score_nlvr2(labels, predictions)
    assert (result.accuracy, result.consistency) == (expected["accuracy"], expected["consistency"])
    assert (result.num_sentences, num_unknown) == (3, 0)


def test_the_official_lines_have_four_pairs_to_a_sentence():
    labels = read_labels(GOLDEN / "nlvr2_dev_sample.jsonl", ignored)
    sentences = defaultdict(set)
    for line in (GOLDEN / "nlvr2_dev_sample.jsonl").read_text().splitlines():
        row = json.loads(line)
        sentences[sentence_of(row["identifier"])].add(row["sentence"])
    assert len(labels) == 40
    assert [len(texts) for texts in sentences.values()] == [1] * len(sentences)
    assert max(sum(sentence_of(name) == sentence for name in labels) for sentence in sentences) == 4


def test_one_wrong_pair_costs_its_whole_sentence():
    labels = read_labels(GOLDEN / "nlvr2_dev_sample.jsonl", ignored)
    right = dict(labels)
    assert score_nlvr2(labels, right)[:2] == (1.0, 1.0)
    right["dev-850-0-0"] = not right["dev-850-0-0"]
    result = score_nlvr2(labels, right)
    assert result.accuracy == 39 / 40
    assert result.consistency == (result.num_sentences - 1) / result.num_sentences


def test_the_sentences_of_one_set_of_images_are_told_apart():
    assert sentence_of("dev-850-2-0") == sentence_of("dev-850-3-0")
    assert len({sentence_of(name) for name in ("dev-850-2-0", "dev-850-2-1", "dev-851-2-0", "test1-850-2-0")}) == 4


@untimed
@given(rows=pairs)
def test_the_scores_are_what_the_definitions_say(rows):
    labels = {name: label for name, (label, _) in rows.items()}
    predictions = {name: prediction for name, (_, prediction) in rows.items()}
    by_sentence = defaultdict(list)
    for name, (label, prediction) in rows.items():
        split, images, _, sentence = name.split("-")
        by_sentence[split, images, sentence].append(label == prediction)
    result = score_nlvr2(labels, predictions)
    hits = [hit for group in by_sentence.values() for hit in group]
    assert result.accuracy == pytest.approx(sum(hits) / len(hits))
    assert result.consistency == pytest.approx(sum(map(all, by_sentence.values())) / len(by_sentence))
    assert result.consistency <= 1 - (1 - result.accuracy) / 4 + 1e-12, "a sentence here has at most 4 pairs"


@untimed
@given(rows=pairs, ranks=st.integers(1, 4))
def test_the_consistency_does_not_depend_on_which_rank_judged_a_pair(rows, ranks: int):
    judged = [(name, label == prediction) for name, (label, prediction) in rows.items()]
    gathered = [row for rank in range(ranks) for row in judged[rank::ranks]]
    assert consistency(gathered) == consistency(judged)
    labels = {name: label for name, (label, _) in rows.items()}
    assert consistency(judged) == score_nlvr2(labels, {name: p for name, (_, p) in rows.items()}).consistency
