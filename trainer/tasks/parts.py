"""What the parts of a loss add up to, as metrics: losses and accuracies, whatever the task."""

from collections.abc import Iterable, Mapping

from model.config import LossConfig
from model.parts import PARTS
from trainer.scoring.metrics import LossSums, Scores, Share


def summed_parts(sums: Mapping[str, float]) -> list[str]:
    """The parts whose sums are among these, in the order of PARTS."""
    return [part for part, of_part in PARTS.items() if of_part.names[0] in sums]


def loss_sums(sums: Mapping[str, float]) -> LossSums:
    """The losses of the parts among named sums."""
    parts = summed_parts(sums)
    losses = LossSums.empty(parts)
    for part in parts:
        loss, weight = PARTS[part].names[:2]
        losses.add(part, sums[loss], sums[weight])
    return losses


def part_scores(sums: Mapping[str, float]) -> list[Scores]:
    """How often each part was right, for those that can be."""
    return [
        Share(f"{part}_accuracy", round(sums[f"{part}_correct"]), round(sum(sums[name] for name in PARTS[part].seen)))
        for part in summed_parts(sums)
        if PARTS[part].seen
    ]


def total_loss(metrics: Mapping[str, float], losses: LossConfig, prefix: str) -> dict[str, float]:
    """`prefix/loss`, the parts of `metrics` weighted as the recipe says; empty without any part."""
    present = [part for part in PARTS if f"{prefix}/{part}_loss" in metrics]
    weighted = (getattr(losses, part) * metrics[f"{prefix}/{part}_loss"] for part in present)
    return {f"{prefix}/loss": sum(weighted)} if present else {}


def part_metrics(parts: Iterable[str]) -> Iterable[str]:
    """The names of the metrics that these parts lead to in training and validation."""
    for part in PARTS:
        if part in parts:
            yield from (f"train/{part}_loss", f"val/{part}_loss")
            if PARTS[part].seen:
                yield f"val/{part}_accuracy"
