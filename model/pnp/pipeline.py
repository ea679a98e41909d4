"""PNP-VQA (Tiong et al. 2022, arXiv 2210.08773): look, describe what was looked at, and let T5 answer from that.

The heatmap comes from the trained fusion and is sharpened by EfficientSAM's mask; captioner and reader are frozen and
know nothing of either.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.config import PnpConfig
from model.looking.guidance import Look
from model.pnp.captions import Captioner
from model.pnp.fid import FidReader
from model.pnp.viewer import Viewer

QUESTIONS_AT_ONCE = 16
"""Answered by one call of the reader: its states of a question take 20 contexts of about 100 tokens."""


class PnpAnswer(NamedTuple):
    """An answer and what it was read from."""

    text: str
    confidence: float
    """The probability that the reader gives the whole answer."""
    captions: list[str]


class PnpPipeline:
    """Heatmap, points, mask, captions, answer; what belongs to an image alone is computed once for its questions."""

    def __init__(self, viewer: Viewer, captioner: Captioner, reader: FidReader, config: PnpConfig) -> None:
        self.viewer, self._captioner, self._reader, self._config = viewer, captioner, reader, config

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move captioner and reader; T5 keeps out of fp16 by itself."""
        self._captioner.place(device, dtype)
        self._reader.place(device)

    def answer(
        self, pixels: Tensor, questions: Sequence[str], image_of_row: Tensor, keys: Sequence[str]
    ) -> list[PnpAnswer]:
        """R answers; none depends on the other questions, nor on their order.

        Args:
            pixels: (B, 3, S, S) uint8 on the model's device.
            questions: R texts, those of an image side by side.
            image_of_row: (R,) int64, ascending.
            keys: what the random numbers of each question hang on, such as its id.
        """
        found = self.viewer.look(pixels, questions, image_of_row)
        return self.answer_from(found, pixels, questions, image_of_row, keys)

    def answer_from(
        self, found: Look, pixels: Tensor, questions: Sequence[str], image_of_row: Tensor, keys: Sequence[str]
    ) -> list[PnpAnswer]:
        """The same from what `Viewer.look` has found already."""
        tokens, rows = self._captioner.image_tokens(pixels), image_of_row.to(pixels.device)
        captions = self._captioner.captions(
            tokens, rows, found.refined.to(pixels.device), list(keys), seed=self._config.seed
        )
        answers = []
        for first in range(0, len(questions), QUESTIONS_AT_ONCE):
            part = slice(first, first + QUESTIONS_AT_ONCE)
            answers += self._reader.answer(
                questions[part],
                captions[part],
                captions_per_context=self._config.captions_per_context,
                max_tokens=self._config.max_answer_tokens,
                max_context_tokens=self._config.max_context_tokens,
            )
        return [PnpAnswer(*answer, seen) for answer, seen in zip(answers, captions, strict=True)]
