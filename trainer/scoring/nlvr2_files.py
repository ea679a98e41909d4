"""NLVR2's official files: labelled pairs as JSON lines, predictions as CSV."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from shards.annotations.json_files import iterate_lines, iterate_records
from shards.annotations.nlvr2 import label_of, pair_of
from shards.annotations.seam import Advance
from shards.errors import DataError
from trainer.scoring.every_item import refuse_missing

LABELLED_FORM = 'NLVR2\'s {"identifier", "label"}, one object per line'
PREDICTIONS_FORM = "identifier,True or identifier,False"


class _Labelled(msgspec.Struct, gc=False):
    identifier: str
    label: str


def read_labels(path: Path, advance: Advance) -> dict[str, bool]:
    """The true label of each pair: dev.json, test1.json, ...

    Raises:
        DataError: a line is of another form, its label is neither True nor False (in any case of letters), its
            identifier has no pair number or is there twice, or there is no pair.
    """
    labels: dict[str, bool] = {}
    for where, record in iterate_records(path, _Labelled, LABELLED_FORM, advance):
        pair_of(record.identifier, where)
        if record.identifier in labels:
            raise DataError(f"{where}: {record.identifier!r} is there twice; expected each pair once")
        labels[record.identifier] = label_of(record.label, f"{where}: label") == "True"
    if not labels:
        raise DataError(f"{path}: no labelled pair; expected {LABELLED_FORM}")
    return labels


def read_predictions(path: Path, labels: Mapping[str, bool], advance: Advance) -> tuple[dict[str, bool], int]:
    """Predictions in the form that the official script reads; columns behind the second do not count.

    Returns:
        The prediction for each pair of `labels`, and the number of lines about other pairs, which do not count: a
        header line is one of them.

    Raises:
        DataError: a line has no second column or a label that is neither True nor False, or a pair has no prediction
            or two.
    """
    predictions: dict[str, bool] = {}
    num_unknown = 0
    for where, line in iterate_lines(path, advance):
        identifier, *cells = line.split(",")
        if not cells:
            raise DataError(f"{where}: {line!r} has no comma; expected {PREDICTIONS_FORM}")
        if identifier not in labels:
            num_unknown += 1
            continue
        if identifier in predictions:
            raise DataError(f"{where}: {identifier!r} is predicted a second time; expected one line for each pair")
        predictions[identifier] = label_of(cells[0], f"{where}: prediction") == "True"
    remedy = "predict them too, or give the labels of the same split"
    refuse_missing(path, predictions, labels, "prediction", "pairs", remedy)
    return predictions, num_unknown
