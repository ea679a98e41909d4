"""NLVR2: accuracy, and consistency over the pairs of a sentence; the CSV that its script reads."""

from collections.abc import Mapping, Sequence

from model.config import LossConfig
from shards.format.index import SplitIndex
from shards.format.records import Statement
from trainer.scoring.metrics import Scores, Share
from trainer.scoring.nlvr2 import consistent_sentences
from trainer.scoring.official import add_no_options, score_nlvr2
from trainer.scoring.predictions import by_id
from trainer.scoring.task import ScoreTask
from trainer.tasks.seam import Json, Outputs, Submission, Task, paired


def observe(
    scores: list[Scores],
    statements: Sequence[Statement],
    outputs: Outputs,
    detailed: bool = False,  # noqa: ARG001 - there is nothing more to count
) -> dict[str, Json]:
    """Count the labels of statements whose own is known; gives [said, known] by identifier."""
    labelled = paired(statements, outputs.classes)
    known = [(one.label, said) for one, said in labelled if one.label is not None]
    scores[0] += Share("accuracy", sum(label == said for label, said in known), len(known))
    return {statement.statement_id: [said, statement.label] for statement, said in labelled}


def conclude(predictions: Mapping[str, Json]) -> list[Share]:
    """Consistency: the part of the sentences with every pair right."""
    rows = [(name, said == label) for name, (said, label) in predictions.items() if label is not None]
    sentences = consistent_sentences(rows)
    return [Share("consistency", sum(sentences.values()), len(sentences))]


def dump(predictions: Mapping[str, Json]) -> Submission:
    """`identifier,True|False`, one line for each pair, by identifier."""
    return Submission("csv", (f"{name},{said}\n".encode() for name, (said, _) in by_id(predictions)))


def metrics(losses: LossConfig) -> tuple[str, ...]:  # noqa: ARG001 - there is one loss
    """Accuracy and consistency."""
    return "accuracy", "consistency"


def measured(index: SplitIndex) -> frozenset[str]:
    """Both."""
    return frozenset({"accuracy", "consistency"} if index.answers else ())


TASK = Task(
    scores=lambda: [Share("accuracy")],
    observe=observe,
    dump=dump,
    metrics=metrics,
    measured=measured,
    headline=(("accuracy", "accuracy"), ("consistency", "consistency")),
    conclude=conclude,
    official=ScoreTask(add_no_options, score_nlvr2),
    recipe="recipes/nlvr2_blip_base.yaml",
    files="--questions {split}.json --images images/{split}",
)
