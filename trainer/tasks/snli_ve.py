"""SNLI-VE: accuracy, in all and of each true label; a file of predicted labels."""

from collections.abc import Mapping, Sequence

from model.config import LossConfig
from shards.annotations.snli_ve import LABELS
from shards.format.index import SplitIndex
from shards.format.records import Statement
from trainer.scoring.metrics import Scores, Share
from trainer.scoring.official import add_no_options, score_snli_ve
from trainer.scoring.predictions import by_id
from trainer.scoring.task import ScoreTask
from trainer.tasks.seam import Json, Outputs, Submission, Task, paired


def observe(
    scores: list[Scores],
    statements: Sequence[Statement],
    outputs: Outputs,
    detailed: bool = False,  # noqa: ARG001 - there is nothing more to count
) -> dict[str, Json]:
    """Count the labels of hypotheses whose own is known; gives all of them by name of the pair."""
    labelled = paired(statements, outputs.classes)
    for place, name in enumerate(("accuracy", *LABELS)):
        known = [(one.label, said) for one, said in labelled if one.label in (LABELS if place == 0 else (name,))]
        scores[place] += Share(name, sum(label == said for label, said in known), len(known))
    return {statement.statement_id: said for statement, said in labelled}


def dump(predictions: Mapping[str, Json]) -> Submission:
    """`[{"pairID", "prediction"}]`, by name of the pair."""
    rows = ({"pairID": name, "prediction": said} for name, said in by_id(predictions))
    return Submission.of_rows(rows, ensure_ascii=False)


def metrics(losses: LossConfig) -> tuple[str, ...]:  # noqa: ARG001 - there is one loss
    """Accuracies."""
    return "accuracy", *LABELS


def measured(index: SplitIndex) -> frozenset[str]:
    """The accuracy, and that of every label of the split."""
    return frozenset({"accuracy", *index.answers})


TASK = Task(
    scores=lambda: [Share("accuracy"), *(Share(label) for label in LABELS)],
    observe=observe,
    dump=dump,
    metrics=metrics,
    measured=measured,
    headline=(("accuracy", "accuracy"), *((label, label) for label in LABELS)),
    official=ScoreTask(add_no_options, score_snli_ve),
    recipe="recipes/snli_ve_blip_base.yaml",
    files="--questions snli_ve_{split}.jsonl --images flickr30k-images",
)
