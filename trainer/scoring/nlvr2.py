"""NLVR2's official scores: accuracy over pairs of images, and consistency over sentences.

Source: nlvr2/eval/metrics.py (lil-lab/nlvr); Suhr et al., ACL 2019 (arXiv:1811.00491).
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Nlvr2Result(NamedTuple):
    """Parts of 1, unrounded, as the official script prints them."""

    accuracy: float
    """What the script calls precision."""
    consistency: float
    num_sentences: int


def sentence_of(identifier: str) -> str:
    """What the pairs of one sentence share: "dev-850-2-0" (split, set, pair, sentence) is of "dev-850--0".

    Args:
        identifier: at least three parts with hyphens between them.
    """
    parts = identifier.split("-")
    parts[2] = ""
    return "-".join(parts)


def consistency(rows: Iterable[tuple[str, bool]]) -> float:
    """The share of sentences all of whose pairs were judged right, a part of 1.

    The pairs of a sentence may come from different ranks: gather the rows of all of them first.

    Args:
        rows: identifier and whether its prediction is right; at least one.
    """
    sentences = consistent_sentences(rows)
    return sum(sentences.values()) / len(sentences)


def score_nlvr2(labels: Mapping[str, bool], predictions: Mapping[str, bool]) -> Nlvr2Result:
    """The official scores.

    Args:
        labels: by identifier; at least one.
        predictions: of each of these identifiers; others do not count.
    """
    right = {identifier: predictions[identifier] == label for identifier, label in labels.items()}
    sentences = consistent_sentences(right.items())
    return Nlvr2Result(sum(right.values()) / len(right), sum(sentences.values()) / len(sentences), len(sentences))


def consistent_sentences(rows: Iterable[tuple[str, bool]]) -> dict[str, bool]:
    """Sentence -> whether all of its pairs are right.

    Args:
        rows: identifier and whether its prediction is right.
    """
    sentences: dict[str, bool] = {}
    for identifier, correct in rows:
        sentence = sentence_of(identifier)
        sentences[sentence] = correct and sentences.get(sentence, True)
    return sentences
