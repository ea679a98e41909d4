"""VQA v2: questions whose ten annotators need not agree."""

from collections import Counter
from collections.abc import Mapping, Sequence

from shards.format.records import VqaQuestion
from shards.tasks.seam import Block, Draw, Row, Rows, Target, TaskData, Visit, Wanted
from shards.vqa_text import normalise_label, soft_scores


def rows(visit: Visit, draw: Draw, wanted: Wanted) -> Rows:  # noqa: ARG001 - nothing is drawn
    """`ask`: every question, once. Its targets are its distinct answers, each weighed by the part of the annotators who
    gave it (Li et al. 2021, ALBEF); its label has the soft scores of those that are classes (Anderson et al. 2018).

    A question of Visual Genome weighs `losses.genome` in both; one without answers nothing.
    """
    questions: Sequence[VqaQuestion] = visit.items
    return Rows({"ask": [_row(question, item, wanted) for item, question in enumerate(questions)]})


def _row(question: VqaQuestion, item: int, wanted: Wanted) -> Row:
    weight = wanted.genome if question.source == "vg" else 1.0
    number = len(question.answers)
    targets = tuple(Target(answer, weight * count / number) for answer, count in Counter(question.answers).items())
    return Row(
        question.question,
        item,
        weight=weight if number else 0.0,
        label=_label(question, wanted.classes) if wanted.classes else (),
        targets=targets or (Target("", 0.0),),
    )


def _label(question: VqaQuestion, classes: Mapping[str, int]) -> tuple[tuple[int, float], ...]:
    """The only answer of a Visual Genome question is wholly right."""
    scores = soft_scores(question.answers)
    if question.source == "vg":
        scores = dict.fromkeys(scores, 1.0)
    return tuple((classes[answer], score) for answer, score in scores.items() if answer in classes)


PEOPLE_ASKED = 10
"""Of each question of VQA: it has at most so many different answers."""

DATA = TaskData(
    formats=("vqa",),
    blocks={"ask": Block(tower="answer", most_targets=PEOPLE_ASKED)},
    reads={"answer": "ask", "classify": "ask"},
    losses={"answer": 1.0},
    rows=rows,
    soft_labels=True,
    class_of=normalise_label,
)
