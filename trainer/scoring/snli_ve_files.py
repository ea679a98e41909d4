"""SNLI-VE's labelled pairs, in the official form or in ALBEF's, and predictions for them."""

from collections.abc import Mapping
from pathlib import Path

from shards.annotations.json_files import iterate_records
from shards.annotations.seam import Advance
from shards.annotations.snli_ve import LabelledPair, PairName, known_label, pair_name
from shards.errors import DataError
from trainer.scoring.every_item import refuse_missing

LABELLED_FORM = 'SNLI-VE\'s {"pairID", "gold_label"}, one object per line, or ALBEF\'s {"image", "sentence", "label"}'
PREDICTIONS_FORM = '{"pairID" or "question_id", "prediction"}'


class _Prediction(PairName, gc=False, kw_only=True):
    prediction: str


def read_labels(path: Path, advance: Advance) -> dict[str, str]:
    """The true label of each pair by its pairID or question_id; a row without one, as ALBEF's are, is named by its
    place in the file: "1", "2", ...

    Raises:
        DataError: a row is of another form, has a label that is none of LABELS, or names a pair that was there before
            (lines and entries count from 1), or there is no pair.
    """
    labels: dict[str, str] = {}
    for place, (where, row) in enumerate(iterate_records(path, LabelledPair, LABELLED_FORM, advance), start=1):
        label = row.truth()
        if label is None:
            raise DataError(f"{where}: neither gold_label nor label; expected {LABELLED_FORM}")
        name = pair_name(row, place)
        if name in labels:
            raise DataError(f"{where}: pair {name!r} is there twice; expected each pair once")
        labels[name] = known_label(label, f"{where}: label")
    if not labels:
        raise DataError(f"{path}: no labelled pair; expected {LABELLED_FORM}")
    return labels


def read_predictions(path: Path, labels: Mapping[str, str], advance: Advance) -> dict[str, str]:
    """Predicted labels: a JSON array of {"pairID" or "question_id", "prediction"}, or one such object per line.

    Raises:
        DataError: a row is of another form, is about a pair that is not in `labels`, or has a label that is none of
            LABELS, or a pair has no prediction or two.
    """
    predictions: dict[str, str] = {}
    for where, row in iterate_records(path, _Prediction, PREDICTIONS_FORM, advance):
        name = row.name()
        if name is None:
            raise DataError(f"{where}: neither pairID nor question_id; expected {PREDICTIONS_FORM}")
        if name not in labels:
            raise DataError(f"{where}: pair {name!r} is not among the pairs; give the predictions of the same split")
        if name in predictions:
            raise DataError(f"{where}: pair {name!r} is predicted a second time; expected one prediction for each pair")
        predictions[name] = known_label(row.prediction, f"{where}: prediction")
    remedy = "predict them too, or give the labels of the same split"
    refuse_missing(path, predictions, labels, "prediction", "pairs", remedy)
    return predictions
