"""Visits to a micro-batch: every page of a document once, and the questions about it with the pages they may mean."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from model.retrieval.batch import NONE, Asked, RetrievalBatch
from model.retrieval.texts import TextForm
from shards.format.images import as_rgb, decode_image
from shards.format.index import SplitIndex
from shards.read.collation import Collated, SeenVisit, first_images
from shards.read.eyes import Augment
from shards.tasks.seam import Row

BLOCK = "find"
"""The only block that page retrieval reads."""

_BLANK_SIDE = 64


class ProcessorEyes:
    """Pages as the image processor of a checkpoint makes them: its size, mean and deviation."""

    def __init__(self, processor: BaseImageProcessor) -> None:
        self.processor = processor

    @property
    def blank(self) -> Tensor:
        """Black."""
        return self.show(Image.new("RGB", (_BLANK_SIDE, _BLANK_SIDE)))

    def see(self, data: bytes, where: str, augment: Augment | None = None) -> Tensor:
        """(3, H, W) float32: upright, in RGB on white, then what the processor does.

        Raises:
            UnreadableImage: not a JPEG, PNG or WebP image of a sane size, or damaged.
        """
        assert augment is None, "a recipe that changes pages is refused"
        return self.show(as_rgb(decode_image(data, where).image))

    def show(self, page: Image.Image) -> Tensor:
        """(3, H, W) float32 of an RGB picture."""
        return self.processor(images=page, return_tensors="pt")["pixel_values"][0]


@dataclass(frozen=True, kw_only=True)
class RetrievalCollation:
    """How the micro-batches of page retrieval are made."""

    form: TextForm
    processor: BaseImageProcessor

    @property
    def modules(self) -> set[str]:
        """See `shards.read.collation.Collation.modules`."""
        return {__name__, type(self.processor).__module__, type(self.form.tokenizer).__module__}

    def eyes(self, index: SplitIndex, image_size: int | None) -> ProcessorEyes:  # noqa: ARG002 - the processor resizes
        """Whole pages in the size of the vision tower."""
        return ProcessorEyes(self.processor)

    def collate(
        self,
        visits: Sequence[SeenVisit],
        *,
        loss_scale: float,
        eyes: ProcessorEyes,
        blanks: int,
        answering: bool,  # noqa: ARG002 - questions are compared, in training too
    ) -> Collated:
        """See `shards.read.collation.Collation.collate`."""
        empty = SeenVisit([eyes.blank] * blanks, {BLOCK: [Row("", 0, weight=0.0)]}, 1, "nothing")
        shown = visits or [empty]
        pages = torch.stack([page for visit in shown for page in visit.images])
        texts, num_cut = self.form.encode([row.text for visit in shown for row in visit.rows[BLOCK]])
        asked = _asked(shown)
        scale = torch.tensor(loss_scale, dtype=torch.float32)
        return Collated(RetrievalBatch(pages, texts, asked, scale), num_cut)


def _asked(visits: Sequence[SeenVisit]) -> Asked:
    placed = zip(visits, first_images(visits), strict=True)
    rows = [(row, first) for visit, first in placed for row in visit.rows[BLOCK]]
    widest = max(len(row.all_images) for row, _ in rows)
    window = torch.full((len(rows), widest), NONE)
    for number, (row, first) in enumerate(rows):
        window[number, : len(row.all_images)] = first + torch.tensor(row.all_images)
    answer = torch.tensor([row.label for row, _ in rows])
    return Asked(window, answer, torch.tensor([row.weight for row, _ in rows]))
