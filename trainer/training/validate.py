"""A split through the model: the losses of the parts, what the task measures, and the predictions themselves.

Sums and counts are merged over ranks, padding has weight 0 and every item is met once, so that no number depends on
the world size.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from model.config import LossConfig
from model.fusion_objective import FusionObjective
from model.objective import Built, Objective
from model.pnp.pipeline import PnpPipeline
from shards.read.loader import Loader
from shards.read.micro_batches import EvaluationBatches
from trainer.engine.distributed import World
from trainer.scoring.confusion import Confusion
from trainer.scoring.matching_curve import MatchingCurve
from trainer.scoring.metrics import Scores, Share, merge_over_ranks
from trainer.scoring.predictions import Predictions, gather
from trainer.tasks import Outputs, Submission, Task
from trainer.tasks.parts import loss_sums, part_scores, total_loss
from trainer.tasks.seam import Json, paired


class Evaluation(NamedTuple):
    """What an evaluation gives, the same on every rank but for the predictions."""

    metrics: dict[str, float]
    """`val/accuracy`, `val/loss`, ...: accuracies are parts of 1."""
    counts: dict[str, int]
    """Items behind each accuracy."""
    predictions: Predictions
    """By item id, of this rank's items."""
    probabilities: Mapping[str, float] = MappingProxyType({})
    """Of the predictions of this rank's items, where the model gives one and they were asked for."""
    confusion: Confusion | None = None
    """Over all ranks; None of what answers nothing."""
    matching: MatchingCurve | None = None
    """Over all ranks; None without losses.itm."""


def evaluate(
    objective: Objective,
    built: Built,
    batches: EvaluationBatches,
    loader: Loader,
    world: World,
    *,
    task: Task,
    losses: LossConfig,
    prefix: str = "val",
    detailed: bool = False,
    probabilities: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _: None,
) -> Evaluation | None:
    """Evaluate this rank's part of a split; every rank must call this.

    Args:
        objective: in evaluation mode, with whole weights.
        detailed: also give the accuracies by reasoning steps and by words, which few look at during training.
        probabilities: also give those of the predictions, which costs another pass through a decoder.
        stop_requested: asked after every micro-batch, and agreed on by all ranks.
        progress: told the number of visits of each micro-batch.

    Returns:
        None when a stop was requested before the end.

    Raises:
        DataError: an image or its annotations cannot be read.
    """
    sums = torch.zeros(len(objective.sum_names), dtype=torch.float64)
    scores, predictions, vocabulary = task.scores(), Predictions(), frozenset(built.classes)
    likely = Predictions()
    confusion, matching = Confusion.over(batches.split.index.answers), MatchingCurve()
    told = {"probabilities": True} if probabilities and isinstance(objective, FusionObjective) else {}
    for item in loader.batches(batches.all_keys()):
        output = objective.evaluate(item.batch.to(world.device), **told)
        sums += output.sums.double().cpu()
        outputs = said(built, output.predictions, vocabulary)
        if "itm" in output.predictions:
            _count_pairs(matching, output.predictions["itm"])
        for one, text in paired(item.items, outputs.answers or outputs.classes):
            if one.kind.answer is not None:
                confusion.add(text, one.kind.answer)
        predictions.update(task.observe(scores, item.items, outputs, detailed))
        if outputs.probabilities is not None:
            likely.update({one.item_id: value for one, value in paired(item.items, outputs.probabilities)})
        progress(item.num_visits)
        if world.any_rank(stop_requested()):
            return None
    named = dict(zip(objective.sum_names, sums.tolist(), strict=True))
    parts = [loss_sums(named), *scores, *part_scores(named)]
    *_, confusion, matching = everything = _over_ranks([*parts, confusion, matching], world)
    merged = _concluded(everything, task, world, prefix, predictions)
    metrics = {**total_loss(merged.metrics, losses, prefix), **merged.metrics}
    return merged._replace(
        metrics=metrics,
        probabilities=likely,
        confusion=confusion if confusion.counts.any() else None,
        matching=matching if matching.counts.any() else None,
    )


def _count_pairs(matching: MatchingCurve, pairs: Tensor) -> None:
    """The rows of a micro-batch that count: see `MatchingPart.predict`."""
    probabilities, truth = pairs.double().cpu().T
    counted = truth >= 0
    matching.add(probabilities[counted].numpy(), truth[counted].int().tolist())


def said(built: Built, predictions: Mapping[str, Tensor], vocabulary: frozenset[str]) -> Outputs:
    """What the parts predict, in words: of the two that may answer, the one that the recipe asks for."""
    answers = classes = probabilities = None
    if "answer" in predictions:
        found = predictions["answer"].tolist()
        answers = [built.classes[n] for n in found] if built.answers_by == "rank" else built.answer_codec.decode(found)
    if "classify" in predictions:
        logits = predictions["classify"]
        classes = [built.classes[number] for number in logits.argmax(dim=-1).tolist()]
        if answers is None:
            soft = any(layout.soft_classes is not None for layout in built.layouts.values())
            probabilities = (logits.float().sigmoid() if soft else logits.float().softmax(-1)).amax(-1).tolist()
    if answers is not None and "answer_probability" in predictions:
        probabilities = predictions["answer_probability"].tolist()
    pages = None
    for part in ("retrieve", "page"):
        if part in predictions:
            pages = [[place for place in places if place >= 0] for places in predictions[part].tolist()]
    return Outputs(answers, classes, vocabulary, pages, probabilities)


def _over_ranks(scores: Sequence[Scores], world: World) -> list[Scores]:
    """Of all ranks; collective."""
    return merge_over_ranks(scores, lambda vector: world.sum_across_ranks(vector).tolist())


def _concluded(merged: list[Scores], task: Task, world: World, prefix: str, predictions: Predictions) -> Evaluation:
    """The scores of all ranks with what can only be measured over a whole split; collective."""
    if task.conclude is not None:
        everything = gather(predictions, world)
        concluded = None if everything is None else json.dumps([list(share) for share in task.conclude(everything)])
        merged += [Share(*share) for share in json.loads(world.broadcast_text(concluded))]
    return Evaluation(
        {name: value for part in merged for name, value in part.as_metrics(prefix).items()},
        {name: value for part in merged for name, value in part.as_counts(prefix).items()},
        predictions,
    )


def evaluate_pnp(
    pipeline: PnpPipeline,
    batches: EvaluationBatches,
    loader: Loader,
    world: World,
    *,
    task: Task,
    prefix: str,
    detailed: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _: None,
) -> Evaluation | None:
    """Answer this rank's part of a split by PNP-VQA; every rank must call this. There is no loss, only accuracies.

    Returns:
        None when a stop was requested on some rank before the end.
    """
    scores, predictions, likely = task.scores(), Predictions(), Predictions()
    for item in loader.batches(batches.all_keys()):
        if item.items:
            texts, keys = zip(*((question.question, question.item_id) for question in item.items), strict=True)
            images = torch.tensor(item.item_images)
            found = pipeline.answer(item.batch.shown.to(world.device), texts, images, keys)
            predictions.update(task.observe(scores, item.items, Outputs([answer.text for answer in found]), detailed))
            likely.update({one.item_id: answer.confidence for one, answer in zip(item.items, found, strict=True)})
        progress(item.num_visits)
        if world.any_rank(stop_requested()):
            return None
    merged = _concluded(_over_ranks(scores, world), task, world, prefix, predictions)
    return merged._replace(probabilities=likely)


def gather_predictions(predictions: Mapping[str, Json], task: Task, world: World) -> Submission | None:
    """All ranks' predictions as the task's file; None on ranks other than 0. Collective."""
    everything = gather(predictions, world)
    return None if everything is None else task.dump(everything)
