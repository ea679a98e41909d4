"""A trained model looks at images for questions: what `look` finds, from pixels and texts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.config import GuidanceConfig, ImageTokens
from model.efficient_sam.segmenter import Segmenter
from model.fusion_objective import FusionObjective
from model.looking.guidance import Look, block_of, check_plain_width, look
from model.pixels import unit_pixels
from model.rows import Grouping
from shards.read.collate import PairCodec, pad


def read_alone(questions: Sequence[str]) -> list[str]:
    """Questions as the matching tower reads them without an answer: PNP-VQA takes the question mark off."""
    return [question.strip("? ") for question in questions]


class Viewer:
    """Finds where in an image a question looks, through the fusion that a run has trained or past it.

    Args:
        objective: in evaluation mode, with a matching tower.
        codec: how the matching tower reads texts.
        segmenter: None for heatmaps and points alone.
        config: how to look.
        looks_with: the image tokens that the matching tower reads. A guided fusion would have to know the masks before
            they are found: with it they are plain in any case.

    Raises:
        ConfigError: the matching tower has no layer from which a heatmap can be read as asked, or reads tokens of
            another width than the plain ones.
    """

    def __init__(
        self,
        objective: FusionObjective,
        codec: PairCodec,
        segmenter: Segmenter | None,
        config: GuidanceConfig,
        *,
        looks_with: ImageTokens = "fused",
    ) -> None:
        match = objective.tower("match")
        assert match is not None, "the heatmap is read from the matching tower"
        block_of(match, config)
        self._fuses = looks_with == "fused" and not objective.is_guided
        if looks_with == "plain":
            check_plain_width(match, objective.sight.width, "pnp.looks_with: plain", instead="fused")
        self._objective, self._codec, self._segmenter, self.config = objective, codec, segmenter, config

    @torch.no_grad()
    def look(
        self, pixels: Tensor, questions: Sequence[str], image_of_row: Tensor, answers: Sequence[str] | None = None
    ) -> Look:
        """Heatmaps, points, masks and refined heatmaps of R questions; each depends on its own image and text alone.

        Args:
            pixels: (B, 3, S, S) uint8 on the model's device.
            questions: R texts, those of an image side by side.
            image_of_row: (R,) int64, ascending: the image of each question.
            answers: read along where they are known; without them, a question is read without its question mark, as
                in PNP-VQA. Matching is trained on questions with answers, and the heat is on
                what an answer is about more often than on what a question is about (docs/heatmap.md).
        """
        if answers is None:
            rows, _ = self._codec.questions(read_alone(questions))
        else:
            rows, _ = self._codec.pairs(questions, answers)
        ids, mask = (part.to(pixels.device) for part in pad(rows, self._codec.pad_id))
        tokens, maps = self._objective.image_tokens(pixels), None
        if self._fuses or self._shares_encoder:
            maps = self._objective.feature_map(pixels)
        if self._fuses:
            tokens = self._objective.fusion(tokens, maps)
        most = int(torch.bincount(image_of_row).max())
        grouping = Grouping.of(image_of_row.to(pixels.device), num_images=len(pixels), rows_per_image=most)
        return look(
            self._objective.tower("match"),
            ids,
            mask,
            tokens,
            grouping,
            segmenter=self._segmenter,
            embeddings=self._embeddings(pixels, maps),
            config=self.config,
            num_tokens=sum(map(len, rows)),
            prefix=self._objective.sight.prefix,
        )

    @property
    def _shares_encoder(self) -> bool:
        """Whether the map of the second stream is what the segmenter reads."""
        stream = self._objective.tower("second_stream")
        return self._segmenter is not None and stream is not None and stream.encoder is self._segmenter.image_encoder

    def _embeddings(self, pixels: Tensor, maps: Tensor | None) -> Tensor | None:
        if self._segmenter is None:
            return None
        return maps if self._shares_encoder else self._segmenter.encode(unit_pixels(pixels))
