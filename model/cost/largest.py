"""The largest micro-batch that a recipe can lead to: every visit full of the longest questions."""

import torch

from model.build import BuiltModel
from shards.format.index import RegionShape
from shards.read.collate import Batch, SeenRegions, Shown, collate
from shards.tasks.seam import Row, Target, TaskData

_WORD = "a "
"""Every tokenizer makes a token of it, at least."""


def largest_batch(
    built: BuiltModel,
    task: TaskData,
    *,
    visits: int,
    questions_per_visit: int,
    rows_per_question: int,
    max_question_tokens: int,
    max_answer_tokens: int,
    image_size: int | None,
    regions: RegionShape | None = None,
) -> Batch:
    """So many visits of K questions each, all as long as the limits allow; what they show is black.

    Args:
        rows_per_question: rows of a block whose labels belong to rows: the pair, and its wrong ones.
        image_size: side in pixels; None for regions.
    """
    images = task.images or 1
    shown = _blank(image_size, regions)
    text = _WORD * max_question_tokens
    answer = _WORD * max_answer_tokens
    made: dict[str, list[Row]] = {}
    for name, layout in built.layouts.items():
        block = layout.block
        count = rows_per_question if block.labels == "rows" else block.rows_per_item
        made[name] = [
            Row(
                text,
                item,
                image=number % images,
                pair=answer if block.paired else None,
                label=0 if layout.soft_classes is None else ((0, 1.0),),
                targets=(Target(answer, 1.0),) * (block.most_targets if layout.targets else 0),
            )
            for item in range(questions_per_visit)
            for number in range(count)
        ]
    batch, _ = collate(
        [shown] * (images * visits),
        [made] * visits,
        built.layouts,
        items_per_visit=[questions_per_visit] * visits,
        loss_scale=1.0,
        blank=shown,
        images_per_visit=[images] * visits,
    )
    return batch


def _blank(image_size: int | None, regions: RegionShape | None) -> Shown:
    if image_size is not None:
        return torch.zeros(3, image_size, image_size, dtype=torch.uint8)
    assert regions is not None, "shards of regions say of what shape they are"
    return SeenRegions(torch.zeros(regions.count, regions.width), torch.zeros(regions.count, 4))
