"""VQA and GQA as LXMERT has them: questions whose answers each have a score, answered by naming a class."""

from collections.abc import Sequence

from shards.format.records import ScoredQuestion
from shards.tasks.seam import Block, Draw, Row, Rows, TaskData, Visit, Wanted


def rows(visit: Visit, draw: Draw, wanted: Wanted) -> Rows:  # noqa: ARG001 - nothing is drawn
    """`ask`: every question, once, with the scores of those of its answers that are classes. A question of which no
    answer is one teaches that none of them is right, as in LXMERT; one without a label weighs nothing."""
    questions: Sequence[ScoredQuestion] = visit.items
    return Rows({"ask": [_row(question, item, wanted) for item, question in enumerate(questions)]})


def _row(question: ScoredQuestion, item: int, wanted: Wanted) -> Row:
    label = question.label or {}
    return Row(
        question.question,
        item,
        weight=float(question.label is not None),
        label=tuple((wanted.classes[answer], score) for answer, score in label.items() if answer in wanted.classes),
    )


DATA = TaskData(
    formats=("lxmert",),
    blocks={"ask": Block(tower="match")},
    reads={"classify": "ask"},
    losses={"classify": 1.0},
    rows=rows,
    soft_labels=True,
)
