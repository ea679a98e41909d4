"""Whether answers depend on the images at all: a model that rests at what its questions alone give says so.

From scratch a model learns first which answers are frequent, then which a question makes likely, and there it may rest
for thousands of steps, with a loss that goes nowhere and an accuracy that looks like a result. Shown the image of
another sample, such a model answers as before; one that looks does not.
"""

import logging
from dataclasses import dataclass, field
from typing import NamedTuple

from model.objective import Built, Objective
from shards.read.collation import AnyBatch
from shards.read.loader import Loader
from shards.read.micro_batches import EvaluationBatches
from trainer.engine.distributed import World
from trainer.scoring.metrics import Share, merge_over_ranks
from trainer.tasks import Task
from trainer.training.validate import said

logger = logging.getLogger(__name__)

MICRO_BATCHES = 16
"""Of each rank, whose images are exchanged: a second pass over so many, until the model looks."""
LOOKS = 0.05
"""With its own images a model that looks is right more often by at least this part of 1; it is not asked again."""
RESTS = 0.02
"""Less than this is no gain: of a thousand questions, one time in forty chance alone gives as much."""
LEAST_QUESTIONS = 20
"""Of fewer nothing is said: in a handful of images the answers are often the same for all of them."""


class Gain(NamedTuple):
    """What the images are worth, as parts of 1."""

    own: float
    """Accuracy with each sample's own images."""
    others: float
    """Accuracy with those of another sample."""
    questions: int


@dataclass
class SightWatch:
    """Asked at each validation until the model looks."""

    _looks: bool = field(default=False, init=False)
    _gain: Gain | None = field(default=None, init=False)

    def look(
        self,
        objective: Objective,
        built: Built,
        batches: EvaluationBatches,
        loader: Loader,
        world: World,
        task: Task,
    ) -> None:
        """Answer some questions with their own images and with others'; collective, and the same on every rank.

        Args:
            objective: in evaluation mode, with whole weights.
        """
        self._gain = None if self._looks else _gain(objective, built, batches, loader, world, task)
        self._looks = self._looks or (self._gain is not None and self._gain.own - self._gain.others >= LOOKS)

    def report(self) -> None:
        """Say, behind the line of a validation, that the model does not look yet, if it does not."""
        if self._gain is None or self._gain.questions < LEAST_QUESTIONS:
            return
        if self._gain.own - self._gain.others >= RESTS:
            return
        logger.info(
            "the answers do not depend on the images yet: %.1f %% are right with their own and %.1f %% with those of "
            "other samples (%d questions), so this is what the texts alone give; from scratch more images, "
            "optim.name=muon, few wide heads and more layers help (docs/from_scratch.md)",
            100 * self._gain.own,
            100 * self._gain.others,
            self._gain.questions,
        )


def _gain(
    objective: Objective, built: Built, batches: EvaluationBatches, loader: Loader, world: World, task: Task
) -> Gain | None:
    """None where nothing is measured that images could change."""
    own, others, questions, vocabulary = task.scores(), task.scores(), 0, frozenset(built.classes)
    before: AnyBatch | None = None
    for item in loader.batches(batches.all_keys()[:MICRO_BATCHES]):
        if not item.samples:
            continue
        batch = item.batch.to(world.device)
        exchanged, before = batch.with_images_exchanged(len(item.samples), before), batch
        if exchanged is None:
            continue
        questions += len(item.items)
        for scores, shown in ((own, batch), (others, exchanged)):
            answered = said(built, objective.evaluate(shown).predictions, vocabulary)
            task.observe(scores, item.items, answered, False)
    asked = Share("asked", count=questions)
    merged = merge_over_ranks([*own, *others, asked], lambda vector: world.sum_across_ranks(vector).tolist())
    with_own, with_others = (
        {name: value for part in half for name, value in part.as_metrics().items()}
        for half in (merged[: len(own)], merged[len(own) : -1])
    )
    if "val/accuracy" not in with_own:
        return None
    return Gain(with_own["val/accuracy"], with_others["val/accuracy"], merged[-1].count)
