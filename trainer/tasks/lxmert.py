"""VQA and GQA in LXMERT's form: the mean score of the answers, that of the best ones, and the files of both tasks."""

from collections.abc import Mapping, Sequence
from itertools import chain

from model.config import LossConfig
from shards.format.index import SplitIndex
from shards.format.records import ScoredQuestion
from trainer.scoring.metrics import Scores
from trainer.scoring.official import add_no_options, score_lxmert
from trainer.scoring.predictions import by_id, by_number
from trainer.scoring.scored import CELLS, ScoredAnswers
from trainer.scoring.task import ScoreTask
from trainer.tasks.seam import Json, Outputs, Submission, Task, paired


def observe(
    scores: list[Scores],
    questions: Sequence[ScoredQuestion],
    outputs: Outputs,
    detailed: bool = False,  # noqa: ARG001 - there is nothing more to count
) -> dict[str, Json]:
    """Count the answers to questions with a label; gives [said, of which task] by question id."""
    answers: ScoredAnswers = scores[0]
    answered = paired(questions, outputs.classes)
    for question, said in answered:
        if question.label is not None:
            answers.add(said, question.label, outputs.vocabulary)
    return {question.question_id: [said, question.source] for question, said in answered}


def dump(predictions: Mapping[str, Json]) -> Submission:
    """`[{"question_id": 1, "answer"}]` by number for VQA, `[{"questionId": "1", "prediction"}]` by id for GQA; written
    as LXMERT's `dump_result` does."""
    vqa = (
        {"question_id": int(name), "answer": said} for name, (said, source) in by_number(predictions) if source == "vqa"
    )
    gqa = ({"questionId": name, "prediction": said} for name, (said, source) in by_id(predictions) if source == "gqa")
    return Submission.of_rows(chain(vqa, gqa), indent=4, end="", sort_keys=True)


def metrics(losses: LossConfig) -> tuple[str, ...]:  # noqa: ARG001 - there is one loss
    """What is scored, and what could be with these classes."""
    return CELLS


def measured(index: SplitIndex) -> frozenset[str]:
    """Both, where there are answers."""
    return frozenset(CELLS if index.answers else ())


TASK = Task(
    scores=lambda: [ScoredAnswers.empty()],
    observe=observe,
    dump=dump,
    metrics=metrics,
    measured=measured,
    headline=(("accuracy", "accuracy"), ("oracle", "oracle")),
    official=ScoreTask(add_no_options, score_lxmert),
    recipe="recipes/lxmert_vqa.yaml",
    files="--questions vqa/{split}.json --regions {split}2014_obj36.tsv",
)
