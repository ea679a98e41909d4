"""GQA: exact match, in all and by type; its submission file."""

from collections.abc import Mapping, Sequence

from model.config import LossConfig
from shards.format.index import SplitIndex
from shards.format.records import Question
from trainer.scoring.gqa import command
from trainer.scoring.metrics import CLASSIFICATIONS, TRAINING_CELLS, AnswerScores, Scores
from trainer.scoring.predictions import by_id
from trainer.scoring.task import ScoreTask
from trainer.tasks.seam import Json, Outputs, Submission, Task, paired


def observe(
    scores: list[Scores], questions: Sequence[Question], outputs: Outputs, detailed: bool = False
) -> dict[str, Json]:
    """Count the answers to questions whose own is known; gives all of them by question id."""
    answers: AnswerScores = scores[0]
    answered = paired(questions, outputs.answers)
    for question, text in answered:
        if question.answer is not None:
            answers.add(
                text,
                question.answer,
                structural=question.types.structural,
                semantic=question.types.semantic,
                steps=question.steps if detailed else None,
                words=len(question.question.split()) if detailed else None,
            )
    return {question.question_id: text for question, text in answered}


def dump(predictions: Mapping[str, Json]) -> Submission:
    """`[{"questionId", "prediction"}]`, by question id."""
    rows = ({"questionId": question, "prediction": said} for question, said in by_id(predictions))
    return Submission.of_rows(rows, ensure_ascii=False)


def metrics(losses: LossConfig) -> tuple[str, ...]:
    """Accuracies, where answers are learnt."""
    return tuple(cell or "accuracy" for cell in TRAINING_CELLS) if losses.answer > 0 else ()


def measured(index: SplitIndex) -> frozenset[str]:
    """What the questions of a split are counted under."""
    structural = index.types.get("structural", {})
    untyped = index.counts.get("questions", 0) > sum(structural.values())
    cells = {"accuracy"}
    if "query" in structural or (untyped and index.answers.keys() - {"yes", "no"}):
        cells.add("open")
    if structural.keys() - {"query"} or (untyped and index.answers.keys() & {"yes", "no"}):
        cells.add("binary")
    for classification, known in CLASSIFICATIONS.items():
        found = index.types.get(classification, {})
        cells |= {f"{classification}/{kind if kind in known else 'other'}" for kind in found}
    return frozenset(cells)


TASK = Task(
    scores=lambda: [AnswerScores.empty()],
    observe=observe,
    dump=dump,
    metrics=metrics,
    measured=measured,
    headline=(("accuracy", "accuracy"), ("binary", "binary"), ("open", "open"), ("ITM", "itm_accuracy")),
    official=ScoreTask(command.add_options, command.score),
    recipe="recipes/gqa_blip_base.yaml",
    files="--questions {split}_balanced_questions.json --images images",
)
