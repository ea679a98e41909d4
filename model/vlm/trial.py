"""Whether a model may be asked several questions behind one image: it is asked, not looked up.

Attention with windows, image tokens that see the text, or positions of a rule of their own would make a question see
what it does not see alone. A wrong answer must never be fast.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from model.towers.checkpoint_files import short_reason
from model.vlm.collation import BLOCK, VlmCollation
from model.vlm.objective import VlmObjective
from shards.read.collation import SeenVisit
from shards.tasks.seam import Row, Target

_TOLERANCE = {torch.float32: 2e-3, torch.float16: 0.06, torch.bfloat16: 0.25}
"""Largest difference of a logit, as a part of their standard deviation, that roundings of a dtype explain."""


class Trial(NamedTuple):
    """What came out."""

    difference: float
    """Of the logits of answers, at most, in parts of their standard deviation."""
    allowed: float
    refused: str | None = None
    """What the model says where it takes no such sequences."""

    @property
    def passed(self) -> bool:
        """Whether sharing changes nothing."""
        return self.refused is None and self.difference <= self.allowed

    def __str__(self) -> str:
        if self.refused is not None:
            return self.refused
        found = f"{self.difference:.2g} of their standard deviation"
        return f"logits differ by {found}, and rounding explains {self.allowed:g}"


@torch.no_grad()
def try_sharing(objective: VlmObjective, collation: VlmCollation, device: torch.device) -> Trial:
    """Two questions and their answers behind one picture, together and each alone.

    Args:
        objective: placed; in any mode.
        collation: of shared questions.
    """
    texts = (("What is in the picture?", "a small red ball"), ("How many are there, and where?", "12"))
    rows = [Row(text, item, targets=(Target(answer, 1.0),)) for item, (text, answer) in enumerate(texts)]
    allowed = _TOLERANCE[objective.model.dtype]
    try:
        together = _logits(objective, collation, rows, device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError) as error:  # of a model that takes no mask or positions
        return Trial(float("inf"), allowed, f"it takes no such sequence: {type(error).__name__}: {short_reason(error)}")
    alone = [_logits(objective, collation, [row._replace(item=0)], device) for row in rows]
    expected = torch.cat(alone)
    difference = (together - expected).abs().max() / expected.std()
    return Trial(float(difference), allowed)


def _logits(objective: VlmObjective, collation: VlmCollation, rows: list[Row], device: torch.device) -> Tensor:
    """(L, V): alone, a question is a row as the model knows rows: with its own mask and its own positions."""
    visit = SeenVisit([_picture()], {BLOCK: rows}, len(rows), "a trial of the model")
    eyes = collation.eyes(None, None)
    batch = collation.collate([visit], loss_scale=1.0, eyes=eyes, blanks=1, answering=False).batch.to(device)
    shared, objective.shared = objective.shared, len(rows) > 1
    try:
        return objective.answer_logits(batch.sequences, batch.learnt.at)
    finally:
        objective.shared = shared


def _picture() -> Tensor:
    """(3, 96, 128) uint8: a gradient with something in it."""
    rows, columns = torch.arange(96)[:, None].expand(96, 128), torch.arange(128).expand(96, 128)
    picture = torch.stack([2 * rows, columns, 255 - rows - columns // 2])
    picture[:, 20:50, 60:100] = torch.tensor([250, 20, 20])[:, None, None]
    return picture.clamp(0, 255).to(torch.uint8)
