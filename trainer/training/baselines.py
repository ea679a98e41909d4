"""What a model's accuracy is held against: the most frequent answer, and what the questions alone tell."""

import logging
from collections.abc import Iterator
from typing import Any

from shards.annotations import reader_of
from shards.errors import UserError
from shards.format.records import Question, VqaQuestion
from shards.plan import Ints
from shards.read.micro_batches import Split
from shards.remote.address import is_url
from trainer.scoring.baselines import MAJORITY, QUESTION_ONLY, Guesses, table
from trainer.tasks import Outputs, Task
from trainer.training.state import Run, TrainState

logger = logging.getLogger(__name__)

MOST_QUESTIONS = 2_000_000
"""Of training; more would take minutes to read."""


def baselines(train: Split, evaluated: Split, asked: Ints, task: Task, prefix: str) -> dict[str, float]:
    """Accuracies of both by name, in the task's own measure; nothing where questions and answers are of another kind,
    where shards lie behind a URL, or where there are more than MOST_QUESTIONS to read.

    Args:
        asked: (images,) questions of each image of `evaluated` that are asked; only 0 matters.
        prefix: such as `val`.

    Raises:
        DataError: shards cannot be read.
    """
    kinds = {reader_of(split.index, split.directory).item for split in (train, evaluated)}
    remote = any(is_url(split.directory) for split in (train, evaluated))
    if remote or not kinds <= {Question, VqaQuestion} or int(train.visits.num_questions.sum()) > MOST_QUESTIONS:
        return {}
    guesses = Guesses(question for questions in _questions(train, train.visits.num_questions) for question in questions)
    majority, blind = task.scores(), task.scores()
    for questions in _questions(evaluated, asked):
        said = [guesses.majority or "" for _ in questions]
        task.observe(majority, questions, Outputs(said), False)
        task.observe(blind, questions, Outputs([guesses.blind(question) or "" for question in questions]), False)
    found = {}
    for name, scores in ((MAJORITY, majority), (QUESTION_ONLY, blind)):
        values = {key: value for score in scores for key, value in score.as_metrics(prefix).items()}
        if f"{prefix}/accuracy" in values:
            found[f"{prefix}/{name}"] = values[f"{prefix}/accuracy"]
    return found


def report_baselines(run: Run, state: TrainState) -> None:
    """Show the table at the end of training, for the validation that decides; call it on rank 0."""
    if run.validation is None:
        return
    batches, _ = run.validation
    best, metric = state.early_stopping.best, run.config.early_stopping.metric
    accuracy = best if metric == "val/accuracy" else state.metrics.get("val/accuracy")
    if accuracy is None:
        return
    try:
        found = baselines(run.train_batches.split, batches.split, batches.order.visits.num_questions, run.task, "val")
    except UserError as error:  # a trained run is not worth less because of it
        logger.warning("no baselines: %s", error)
        return
    for line in table({**found, "val/accuracy": accuracy}, "val"):
        logger.info("%s", line)


def _questions(split: Split, asked: Ints) -> Iterator[list[Any]]:
    """The questions of each image that is asked about."""
    for image in asked.nonzero()[0].tolist():
        yield list(split.reader.sample(image).questions)
