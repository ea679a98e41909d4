"""Rows of text in, one padded micro-batch out: what images show once each, rows flattened with their image's number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from shards.tasks.seam import Block as BlockOfTask
from shards.tasks.seam import Row, Target

IGNORED_LABEL = -100
_LENGTH_MULTIPLE = 8
"""Lengths are rounded up to this: tensor cores want it, and fewer distinct shapes mean fewer allocations."""

TokenIds = list[int]


class TextCodec(Protocol):
    """What the loader needs of a tower's tokenizer; `model.towers.tokenizer` has those that are used."""

    pad_id: int
    start_id: int
    """The decoder's first input."""
    end_id: int
    """Ends an answer."""

    def questions(self, texts: Sequence[str]) -> tuple[list[TokenIds], list[bool]]:
        """Token ids of each text, with special tokens, cut to the limit; and whether it had to be cut."""

    def answers(self, texts: Sequence[str]) -> list[TokenIds]:
        """Token ids of each answer, without special tokens, cut so that start or end token still fit."""


class PairCodec(TextCodec, Protocol):
    """That of a tower which also matches pairs."""

    def pairs(self, questions: Sequence[str], answers: Sequence[str]) -> tuple[list[TokenIds], list[bool]]:
        """Token ids of `question [SEP] answer`, with special tokens; and whether the question had to be cut."""


class Targets(NamedTuple):
    """Texts for a decoder to write: T of them, each behind a row of its block."""

    ids: Tensor
    """(T, La) int64 decoder input: start token, then the text"""
    labels: Tensor
    """(T, La) int64: the text, then the end token; -100 at padding"""
    row: Tensor
    """(T,) int64 row of the block, ascending"""
    weight: Tensor
    """(T,) float32; 0 for padding and for rows without a text"""
    one_per_row: bool
    """Whether target t is that of row t: then what a row has read need not be copied."""


class Block(NamedTuple):
    """R rows of text of one kind, of I items; L tokens at most. Rows are sorted by image."""

    ids: Tensor
    """(R, L) int64"""
    mask: Tensor
    """(R, L) bool, True at tokens"""
    image: Tensor
    """(R,) int64 row of `Batch.shown`"""
    item: Tensor
    """(R,) int64 number of the item in the micro-batch"""
    weight: Tensor
    """(R,) float32, or (I,) where labels belong to items: of the label; 0 for padding and where there is no label"""
    labels: Tensor
    """(R,) or (I,) int64 classes, or (I, classes) float32 scores of soft labels"""
    targets: Targets | None
    """None where nothing is to be written"""
    rows_per_image: int
    """The most rows that one image of this micro-batch has: known here, so that no GPU is asked for it."""
    rows_per_item: int
    """The most rows of one item."""
    tokens: int
    """Tokens of all rows, padding left out."""

    def by_item(self) -> Self:
        """The block for image tokens that differ from item to item: row i of them is that of item i."""
        return self._replace(image=self.item, rows_per_image=self.rows_per_item)


class SeenRegions(NamedTuple):
    """What a detector saw in B images: R regions each, F numbers of each region."""

    features: Tensor
    """(B, R, F) float32; of one image (R, F), like the next"""
    boxes: Tensor
    """(B, R, 4) float32: left, top, right, bottom in parts of the image's width and height"""


class CachedTokens(NamedTuple):
    """What a frozen encoder made of B images, as a cache keeps it."""

    values: Tensor
    """(B, N, D) float16 or int8; of one image (N, D), and so on"""
    scales: Tensor | None
    """(B, N, 1) float32 of int8: what the values of a token are multiplied with"""

    def restored(self, dtype: torch.dtype) -> Tensor:
        """(B, N, D) tokens."""
        return (self.values if self.scales is None else self.values * self.scales).to(dtype)


class SeenFeatures(NamedTuple):
    """The cached tokens of B images, in the place of what they show."""

    vision: CachedTokens | None
    """Of the first stream; None where that is not cached"""
    second_stream: CachedTokens | None
    """(B, h·w, D) cells of the second stream's map, row by row"""
    shown: Tensor | SeenRegions | None
    """For an encoder whose tokens are not cached; None where nothing is left to look at"""


Shown = Tensor | SeenRegions | SeenFeatures
"""Pixels (B, 3, S, S) uint8, of one image (3, S, S); or regions; or what encoders made of either."""


class Batch(NamedTuple):
    """The tensors of one micro-batch. A micro-batch without any real visit holds the blank images of one sample and
    the rows of one item with weight 0, so that every rank runs the same layers."""

    shown: Shown
    """What its images show; all batches of a split hold pixels, or all of them regions, or what is cached of them: a
    batch that meets damage in a cache holds what the others do without one."""
    blocks: dict[str, Block]
    """By name; a block that nothing is learnt from is not there."""
    loss_scale: Tensor
    """() float32: what the sums over items are multiplied with (world size x accumulation / N, or 1)"""

    def each_item_alone(self) -> Self:
        """The batch for image tokens that differ from item to item."""
        return self._replace(blocks={name: block.by_item() for name, block in self.blocks.items()})

    @property
    def num_images(self) -> int:
        """B"""
        return count_images(self.shown)

    def with_images_exchanged(self, num_samples: int, before: "Batch | None" = None) -> Self | None:
        """The same texts, each shown what the sample in front of its own shows; None where samples have several
        images, not all as many, or there is no sample in front.

        Args:
            num_samples: of the batch.
            before: the batch in front, whose images a single sample is shown.
        """
        if num_samples == 1:
            fits = before is not None and before.num_images == self.num_images
            return self._replace(shown=before.shown) if fits else None
        if self.num_images % num_samples:
            return None
        return self._replace(shown=_rolled(self.shown, self.num_images // num_samples))

    def to(self, device: torch.device) -> Self:
        """The batch on a device; from pinned memory the copies do not block."""
        return to_device(self, device)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the rows of a block become tensors."""

    block: BlockOfTask
    codec: TextCodec
    targets: bool = False
    """Whether a decoder learns to write the rows' targets."""
    soft_classes: int | None = None
    """The number of classes of soft labels; None for labels that are one class each."""


def collate(
    images: Sequence[Shown],
    visits: Sequence[Mapping[str, Sequence[Row]]],
    layouts: Mapping[str, Layout],
    *,
    items_per_visit: Sequence[int],
    loss_scale: float,
    blank: Shown,
    images_per_visit: Sequence[int] | None = None,
) -> tuple[Batch, int]:
    """One micro-batch, and how many of its items were cut at the limit of tokens in the first of its blocks.

    Args:
        images: what each image shows, visit by visit.
        visits: the rows of each visit, by block.
        layouts: the blocks to make.
        items_per_visit: how many items each visit has.
        loss_scale: see `Batch.loss_scale`.
        blank: what an image of an empty micro-batch shows.
        images_per_visit: how many images each visit has; of an empty micro-batch, that of one visit. None is one each.
    """
    images_per_visit = images_per_visit or [1] * max(len(visits), 1)
    numbered = [_numbered([visit[name] for visit in visits], items_per_visit, images_per_visit) for name in layouts]
    num_items = max(sum(items_per_visit), 1)
    made = [_collate_block(rows, layout, num_items) for rows, layout in zip(numbered, layouts.values(), strict=True)]
    blocks = dict(zip(layouts, (block for block, _ in made), strict=True))
    scale = torch.tensor(loss_scale, dtype=torch.float32)
    return Batch(stacked(images or [blank] * images_per_visit[0]), blocks, scale), made[0][1] if made else 0


def ask(pixels: list[Tensor], questions: Sequence[Sequence[str]], layout: Layout) -> Batch:
    """A batch of questions without answers, in a block `ask`.

    Args:
        pixels: one (3, S, S) uint8 tensor per image.
        questions: those about each image.
    """
    visits = [{"ask": [Row(text, item) for item, text in enumerate(texts)]} for texts in questions]
    batch, _ = collate(
        pixels,
        visits,
        {"ask": replace(layout, targets=False)},
        items_per_visit=[len(texts) for texts in questions],
        loss_scale=1.0,
        blank=pixels[0],
    )
    return batch


def stacked(images: Sequence[Any]) -> Any:
    """What each image shows as one thing, tensor by tensor."""
    if images[0] is None:
        return None
    if isinstance(images[0], Tensor):
        together = torch.empty(len(images), *images[0].shape, dtype=images[0].dtype)
        for place, image in enumerate(images):
            together[place] = image
        return together
    return type(images[0])(*(stacked(parts) for parts in zip(*images, strict=True)))


def count_images(shown: Any) -> int:
    """B, by the first tensor that is there."""
    if isinstance(shown, Tensor):
        return len(shown)
    return count_images(next(part for part in shown if part is not None))


def _numbered(
    visits: Sequence[Sequence[Row]], items_per_visit: Sequence[int], images_per_visit: Sequence[int]
) -> list[Row]:
    """The rows of all visits with image and item numbers of the micro-batch, sorted by image."""
    rows: list[Row] = []
    first_item = first_image = 0
    for visit_rows, num_items, num_images in zip(visits, items_per_visit, images_per_visit, strict=False):
        rows += [row._replace(image=first_image + row.image, item=first_item + row.item) for row in visit_rows]
        first_item += num_items
        first_image += num_images
    return sorted(rows, key=lambda row: row.image)


def _collate_block(rows: list[Row], layout: Layout, num_items: int) -> tuple[Block, int]:
    block, codec = layout.block, layout.codec
    if not rows:
        empty = Row("", 0, pair="" if block.paired else None, weight=0.0, targets=(Target("", 0.0),))
        rows = [empty._replace(image=image) for image in range(block.rows_per_item)]
    texts = [row.text for row in rows]
    if block.paired:
        ids, cut = codec.pairs(texts, [row.pair for row in rows])
    else:
        ids, cut = codec.questions(texts)
    padded, mask = pad(ids, codec.pad_id, multiple=_LENGTH_MULTIPLE)
    image, item = torch.tensor([row.image for row in rows]), torch.tensor([row.item for row in rows])
    first_of_item = {row.item: number for number, row in reversed(list(enumerate(rows)))}
    weight, labels = _labels(rows, first_of_item, layout, num_items)
    made = Block(
        padded,
        mask,
        image,
        item,
        weight,
        labels,
        collate_targets(rows, codec) if layout.targets else None,
        _most(image),
        _most(item),
        int(mask.sum()),
    )
    return made, sum(cut[number] for number in first_of_item.values())


def _labels(rows: list[Row], first_of_item: Mapping[int, int], layout: Layout, num_items: int) -> tuple[Tensor, Tensor]:
    """Weights and labels, of rows or of items. An item without rows weighs nothing."""
    if layout.block.labels == "rows":
        labelled: list[Row | None] = list(rows)
    else:
        labelled = [rows[first_of_item[item]] if item in first_of_item else None for item in range(num_items)]
    weight = torch.tensor([0.0 if row is None else row.weight for row in labelled])
    classes = [0 if row is None else row.label for row in labelled]
    if layout.soft_classes is None:
        return weight, torch.tensor([label if isinstance(label, int) else 0 for label in classes])
    labels = torch.zeros(len(labelled), layout.soft_classes)
    for number, scores in enumerate(classes):
        for label, score in scores if isinstance(scores, tuple) else ():
            labels[number, label] = score
    return weight, labels


def collate_targets(rows: Sequence[Row], codec: TextCodec) -> Targets:
    """What a decoder is to write behind each row."""
    targets = [target for row in rows for target in row.targets]
    numbers = [number for number, row in enumerate(rows) for _ in row.targets]
    if not targets:
        targets, numbers = [Target("", 0.0)], [0]
    answers = codec.answers([target.text for target in targets])
    ids, _ = pad([[codec.start_id, *answer] for answer in answers], codec.pad_id)
    labels, _ = pad([[*answer, codec.end_id] for answer in answers], IGNORED_LABEL)
    weight = torch.tensor([target.weight for target in targets])
    return Targets(ids, labels, torch.tensor(numbers), weight, numbers == list(range(len(rows))))


def _most(numbers: Tensor) -> int:
    """How often the most frequent number stands there."""
    return int(torch.bincount(numbers).max())


def pad(rows: list[TokenIds], value: int, *, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor, padded behind to the longest rounded up to `multiple`: (rows, L) ids and bool mask."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    length = -(-int(lengths.max()) // multiple) * multiple
    mask = np.arange(length) < lengths[:, None]
    ids = np.full((len(rows), length), value, np.int64)
    ids[mask] = np.fromiter(chain.from_iterable(rows), np.int64, int(lengths.sum()))
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _rolled(shown: Any, count: int) -> Any:
    if shown is None:
        return None
    if isinstance(shown, Tensor):
        return shown.roll(count, dims=0)
    return type(shown)(*(_rolled(part, count) for part in shown))


def to_device(value: object, device: torch.device) -> object:
    """What is made of tensors, named tuples and dicts, with its tensors on a device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: to_device(part, device) for name, part in value.items()}
    if isinstance(value, tuple):
        return type(value)(*(to_device(part, device) for part in value))
    return value
