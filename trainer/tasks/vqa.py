"""VQA v2: the official accuracy, in all and by answer type; its submission file."""

from collections.abc import Mapping, Sequence

from model.config import LossConfig
from shards.format.index import SplitIndex
from shards.format.records import VqaQuestion
from trainer.scoring.metrics import Scores
from trainer.scoring.official import add_vqa_options, score_vqa
from trainer.scoring.predictions import by_number
from trainer.scoring.task import ScoreTask
from trainer.scoring.vqa import CELL_OF_TYPE, CELLS, VqaScores
from trainer.tasks.seam import Json, Outputs, Submission, Task, paired


def observe(
    scores: list[Scores],
    questions: Sequence[VqaQuestion],
    outputs: Outputs,
    detailed: bool = False,  # noqa: ARG001 - there is nothing more to count
) -> dict[str, Json]:
    """Count the answers to questions that annotators answered; gives all of them by question id."""
    accuracies: VqaScores = scores[0]
    answered = paired(questions, outputs.classes if outputs.answers is None else outputs.answers)
    for question, text in answered:
        if question.answers:
            accuracies.add(text, question.answers, question.answer_type)
    return {question.question_id: text for question, text in answered}


def dump(predictions: Mapping[str, Json]) -> Submission:
    """`[{"question_id", "answer"}]`, by question id; official ids are numbers."""
    rows = (
        {"question_id": int(name) if name.isdecimal() else name, "answer": said}
        for name, said in by_number(predictions)
    )
    return Submission.of_rows(rows, ensure_ascii=False)


def measured(index: SplitIndex) -> frozenset[str]:
    """The accuracy, and that of every answer type of the split."""
    types = index.types.get("answer_type", {})
    return frozenset({"accuracy", *(CELL_OF_TYPE[name] for name in types if name in CELL_OF_TYPE)})


def metrics(losses: LossConfig) -> tuple[str, ...]:  # noqa: ARG001 - either loss answers
    """Accuracies."""
    return CELLS


TASK = Task(
    scores=lambda: [VqaScores.empty()],
    observe=observe,
    dump=dump,
    metrics=metrics,
    measured=measured,
    headline=(("accuracy", "accuracy"), ("yes/no", "yes_no"), ("number", "number"), ("other", "other")),
    official=ScoreTask(add_vqa_options, score_vqa),
    recipe="recipes/vqa_blip_base.yaml",
    files="--questions v2_OpenEnded_mscoco_{split}2014_questions.json "
    "--annotations v2_mscoco_{split}2014_annotations.json --images {split}2014",
)
