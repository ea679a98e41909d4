"""A split through the model: losses, ITM accuracy, exact match per type, and the answers themselves.

Sums and counts are merged over ranks, padding has weight 0 and every question is asked once, so that no number depends
on the world size.
"""

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from model.build import BuiltModel
from model.config import LossConfig
from model.objective import SUM_NAMES, Objective
from model.pnp.pipeline import PnpPipeline
from shards.format.records import Question
from shards.read.loader import EvaluationBatches, Loader
from trainer.engine.distributed import World
from trainer.scoring.metrics import AnswerScores, LossSums, MatchScores, merge_over_ranks

LOSS_PARTS = ("answer", "itm")


class Evaluation(NamedTuple):
    """What an evaluation gives, the same on every rank but for the predictions."""

    metrics: dict[str, float]
    """`val/accuracy`, `val/loss`, ...: accuracies are parts of 1."""
    counts: dict[str, int]
    """Questions behind each accuracy."""
    predictions: dict[str, str]
    """Question id to answer, of this rank's questions."""


def loss_sums(sums: dict[str, float]) -> LossSums:
    """The loss parts of a vector named by SUM_NAMES."""
    parts = LossSums.empty(LOSS_PARTS)
    parts.add("answer", sums["answer_loss"], sums["answered"])
    parts.add("itm", sums["itm_loss"], sums["matched"])
    return parts


def total_loss(metrics: dict[str, float], losses: LossConfig, prefix: str) -> dict[str, float]:
    """`prefix/loss`, the parts of `metrics` weighted as the recipe says; empty without any part."""
    weights = {"answer": losses.answer, "itm": losses.itm}
    present = [part for part in LOSS_PARTS if f"{prefix}/{part}_loss" in metrics]
    return (
        {f"{prefix}/loss": sum(weights[part] * metrics[f"{prefix}/{part}_loss"] for part in present)} if present else {}
    )


def evaluate(
    objective: Objective,
    built: BuiltModel,
    batches: EvaluationBatches,
    loader: Loader,
    world: World,
    *,
    losses: LossConfig,
    prefix: str = "val",
    detailed: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _: None,
) -> Evaluation | None:
    """Evaluate this rank's part of a split; every rank must call this.

    Args:
        objective: in evaluation mode, with whole weights.
        detailed: also give the accuracies by reasoning steps and by words, which few look at during training.
        stop_requested: asked after every micro-batch, and agreed on by all ranks.
        progress: told the number of visits of each micro-batch.

    Returns:
        None when a stop was requested before the end.

    Raises:
        DataError: an image or its annotations cannot be read.
    """
    sums = torch.zeros(len(SUM_NAMES), dtype=torch.float64)
    answers, predictions = AnswerScores.empty(), {}
    for item in loader.batches(batches.all_keys()):
        output = objective.evaluate(item.batch.to(world.device))
        sums += output.sums.double().cpu()
        if output.answer_ids is not None:
            texts = built.answer_codec.decode(output.answer_ids.tolist())
            # An empty micro-batch has a dummy row, which no question belongs to.
            predictions |= score_answers(answers, item.questions, texts, detailed=detailed)
        progress(item.num_visits)
        if world.any_rank(stop_requested()):
            return None
    named = dict(zip(SUM_NAMES, sums.tolist(), strict=True))
    matches = MatchScores(round(named["itm_correct"]), round(named["itm_positives"] + named["itm_negatives"]))
    merged = merge_over_ranks([loss_sums(named), answers, matches], lambda v: world.sum_across_ranks(v).tolist())
    metrics = {name: value for scores in merged for name, value in scores.as_metrics(prefix).items()}
    counts = {name: value for scores in merged[1:] for name, value in scores.as_counts(prefix).items()}
    return Evaluation({**total_loss(metrics, losses, prefix), **metrics}, counts, predictions)


def evaluate_pnp(
    pipeline: PnpPipeline,
    batches: EvaluationBatches,
    loader: Loader,
    world: World,
    *,
    prefix: str,
    detailed: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Answer this rank's part of a split by PNP-VQA; every rank must call this. There is no loss, only accuracies."""
    answers, predictions = AnswerScores.empty(), {}
    for item in loader.batches(batches.all_keys()):
        if item.questions:
            texts, keys = zip(*((question.question, question.question_id) for question in item.questions), strict=True)
            images = torch.tensor(item.question_images)
            found = pipeline.answer(item.batch.pixels.to(world.device), texts, images, keys)
            said = [answer.text for answer in found]
            predictions |= score_answers(answers, item.questions, said, detailed=detailed)
        progress(item.num_visits)
    (merged,) = merge_over_ranks([answers], lambda v: world.sum_across_ranks(v).tolist())
    return Evaluation(merged.as_metrics(prefix), merged.as_counts(prefix), predictions)


def score_answers(
    answers: AnswerScores, questions: Sequence[Question], texts: Sequence[str], *, detailed: bool
) -> dict[str, str]:
    """Count the answers to questions whose own is known; gives all of them by question id."""
    for question, text in zip(questions, texts, strict=False):
        if question.answer is not None:
            answers.add(
                text,
                question.answer,
                structural=question.types.structural,
                semantic=question.types.semantic,
                steps=question.steps if detailed else None,
                words=len(question.question.split()) if detailed else None,
            )
    return {question.question_id: text for question, text in zip(questions, texts, strict=False)}


def gather_predictions(predictions: dict[str, str], world: World) -> bytes | None:
    """All ranks' predictions as GQA's submission file, by question id; None on ranks other than 0. Collective."""
    parts = world.gather_text(json.dumps(predictions))
    if parts is None:
        return None
    everything = {question: answer for part in parts for question, answer in json.loads(part).items()}
    rows = [{"questionId": question, "prediction": everything[question]} for question in sorted(everything)]
    return (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode()
