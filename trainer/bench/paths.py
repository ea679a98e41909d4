"""The paths on which a training step is measured: the grouped one, and it with less and less of what makes it fast."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from model.looking.second_stream import map_to_cells
from model.losses import answer_loss, matching_loss
from model.rows import Grouping
from model.towers.blip import decode_text, encode_text
from shards.read.collate import Batch, Block, CachedTokens, SeenFeatures
from trainer.bench.reference import PlainPath
from trainer.bench.workload import Workload

Losses = Callable[[], Iterator[Tensor]]
"""Gives the parts of the loss of a step one by one; the gradients of each are taken before the next is computed."""

GROUPED, CACHED, PLAIN = "grouped", "cached", "plain"
KEYS_PER_ROW, IMAGES_ONCE, IMAGE_PER_QUESTION = "keys_values_per_row", "images_encoded_once", "image_per_question"

DESCRIPTIONS = {
    GROUPED: "image encoded, fused and projected to keys and values once",
    CACHED: "the same, but the image's tokens are read from a cache, in fp16",
    KEYS_PER_ROW: "the same, but keys and values projected per row of text",
    IMAGES_ONCE: "plain, but the vision transformer runs once per image",
    IMAGE_PER_QUESTION: "plain, but the pairs of a question share its fused image",
    PLAIN: "image encoded and fused for every row of text",
}


def path_of(workload: Workload, name: str) -> Losses:
    """One of the paths, by name."""
    if name == GROUPED:
        return partial(_grouped, workload)
    if name == CACHED:
        return partial(_grouped, Workload(workload.objective, _cached(workload)))
    if name == KEYS_PER_ROW:
        return partial(_keys_per_row, workload)
    plain = PlainPath(workload)
    rows = {IMAGES_ONCE: plain.images_once, IMAGE_PER_QUESTION: plain.image_per_question, PLAIN: plain.plain}
    return rows[name]


def _grouped(workload: Workload) -> Iterator[Tensor]:
    yield workload.objective(workload.batch).loss


@torch.no_grad()
def _cached(workload: Workload) -> Batch:
    """The batch as the loader gives it where both streams are cached."""
    objective, batch = workload
    tokens, maps = objective.image_tokens(batch.shown), objective.feature_map(batch.shown)
    vision, second = (CachedTokens(kept.half(), None) for kept in (tokens, map_to_cells(maps)))
    return batch._replace(shown=SeenFeatures(vision, second, None))


def _keys_per_row(workload: Workload) -> Iterator[Tensor]:
    objective, batch = workload
    fused = objective.fuse(batch.shown)
    tower, ask, match = objective.tower("answer"), batch.blocks["ask"], batch.blocks["match"]
    states = _encode_alone(tower.text_encoder, ask, fused)
    logits = decode_text(tower.text_decoder, ask.targets.ids, states, ask.mask)
    answering = (answer_loss(logits, ask.targets.labels) * ask.targets.weight).sum()
    tower = objective.tower("match")
    states = _encode_alone(tower.text_encoder, match, fused)
    matching = (matching_loss(tower.itm_head(states[:, 0]), match.labels) * match.weight).sum()
    yield (answering + matching) * batch.loss_scale


def _encode_alone(encoder: torch.nn.Module, block: Block, fused: Tensor) -> Tensor:
    """Every row reads a copy of its image's tokens: (B, N, D) tokens to (R, L, D)."""
    rows = len(block.ids)
    alone = Grouping(torch.arange(rows, device=fused.device), num_images=rows, rows_per_image=1)
    return encode_text(encoder, block.ids, block.mask, fused[block.image], alone, num_tokens=block.tokens)
