"""Rows become tensors: what a target is behind, whose label it is, and what stands where there is nothing."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shards.read.collate import IGNORED_LABEL, Batch, Layout, ask, collate
from shards.tasks.seam import Block, Row, Target
from tests.rows import LetterCodec, leaves

SIZE = 8
BLACK = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
CLASSES = 5
CODEC = LetterCodec()
ASK = Layout(block=Block(tower="answer"), codec=CODEC, targets=True)
CHOOSE = Layout(block=Block(tower="match", rows_per_item=2), codec=CODEC)
SOFT = Layout(block=Block(tower="match", rows_per_item=2), codec=CODEC, soft_classes=CLASSES)
MATCH = Layout(block=Block(tower="match", paired=True, labels="rows"), codec=CODEC)
LAYOUTS = {"ask": ASK, "choose": CHOOSE, "soft": SOFT, "match": MATCH}
quick = settings(deadline=None, max_examples=50)


def batch_of(
    visits: Sequence[dict[str, list[Row]]], layouts: dict[str, Layout], items: Sequence[int], *, images: int = 1
) -> Batch:
    pixels = [torch.full((3, SIZE, SIZE), number, dtype=torch.uint8) for number in range(images * len(visits))]
    return collate(
        pixels,
        visits,
        layouts,
        items_per_visit=items,
        loss_scale=0.25,
        blank=BLACK,
        images_per_visit=[images] * max(len(visits), 1),
    )[0]


def said(ids: Tensor) -> str:
    """A text out of its letters; special tokens are left out."""
    return "".join(chr(token - 3) for token in ids.tolist() if token > CODEC.end_id)


words = st.text("abcdef", min_size=1, max_size=6)
targets = st.lists(st.builds(Target, words, st.sampled_from([0.3, 0.6, 1.0])), max_size=3)


@quick
@given(st.lists(targets, min_size=1, max_size=6))
def test_every_target_points_to_the_row_that_it_is_written_behind(targets_of_rows: list[list[Target]]) -> None:
    rows = [Row("question", item, targets=tuple(found)) for item, found in enumerate(targets_of_rows)]
    found = batch_of([{"ask": rows}], {"ask": ASK}, [len(rows)]).blocks["ask"].targets
    expected = [(number, *target) for number, row in enumerate(rows) for target in row.targets]
    assert found.one_per_row == all(len(row.targets) == 1 for row in rows) or not expected
    if not expected:
        expected = [(0, "", 0.0)]
        assert found.one_per_row == (len(rows) == 1)
    assert found.row.tolist() == [row for row, _, _ in expected]
    assert found.weight.tolist() == pytest.approx([weight for _, _, weight in expected])
    for ids, labels, (_, text, _) in zip(found.ids, found.labels, expected, strict=True):
        known = labels[labels != IGNORED_LABEL]
        assert ids[0] == CODEC.start_id
        assert known[-1] == CODEC.end_id
        assert said(ids) == said(known) == text


def test_targets_of_a_row_stay_together_and_are_more_than_the_rows() -> None:
    rows = [Row("a", 0, targets=(Target("x", 1.0), Target("y", 0.3))), Row("b", 1, targets=(Target("z", 0.6),))]
    found = batch_of([{"ask": rows}], {"ask": ASK}, [2]).blocks["ask"].targets
    assert found.row.tolist() == [0, 0, 1]
    assert not found.one_per_row
    assert [said(ids) for ids in found.ids] == ["x", "y", "z"]


def test_as_many_targets_as_rows_are_not_one_for_each_where_one_row_has_two() -> None:
    rows = [Row("a", 0, targets=(Target("x", 1.0), Target("y", 1.0))), Row("b", 1)]
    found = batch_of([{"ask": rows}], {"ask": ASK}, [2]).blocks["ask"].targets
    assert found.row.tolist() == [0, 0]
    assert not found.one_per_row


class TestItemsOfTwoRows:
    """An item that reads both images of its sample, a row for each, and has one label."""

    @staticmethod
    def rows(visit: int, labels: Sequence[int | None], soft: bool = False) -> list[Row]:
        """The rows of a visit, item by item; an item whose label is None has none."""
        return [
            Row(
                text=f"{visit}.{item}.{image}",
                item=item,
                image=image,
                weight=0.25 + item,
                label=((label, 0.5), ((label + 1) % CLASSES, 0.25)) if soft else label,
            )
            for item, label in enumerate(labels)
            if label is not None
            for image in range(2)
        ]

    visits = st.lists(st.lists(st.none() | st.integers(0, CLASSES - 1), min_size=1, max_size=4), min_size=1, max_size=4)

    @quick
    @given(visits)
    def test_rows_are_sorted_by_image_and_items_are_numbered_over_the_visits(
        self, labels: list[list[int | None]]
    ) -> None:
        made = [{"choose": self.rows(visit, known)} for visit, known in enumerate(labels)]
        block = batch_of(made, {"choose": CHOOSE}, [len(known) for known in labels], images=2).blocks["choose"]
        items = [(visit, item) for visit, known in enumerate(labels) for item in range(len(known))]
        rows = [row for visit in made for row in visit["choose"]]
        assert (block.image.diff() >= 0).all()
        if rows:
            found = sorted(said(ids) for ids in block.ids)
            assert found == sorted(row.text for row in rows)
            for ids, image, item in zip(block.ids, block.image.tolist(), block.item.tolist(), strict=True):
                visit, position, of_visit = map(int, said(ids).split("."))
                assert image == 2 * visit + of_visit
                assert items[item] == (visit, position)
            assert block.rows_per_item == 2
        assert block.rows_per_image == int(block.image.bincount().max())

    @quick
    @given(visits)
    def test_an_item_has_one_label_and_weighs_nothing_without_rows(self, labels: list[list[int | None]]) -> None:
        made = [{"choose": self.rows(visit, known)} for visit, known in enumerate(labels)]
        block = batch_of(made, {"choose": CHOOSE}, [len(known) for known in labels], images=2).blocks["choose"]
        flat = [(item, label) for known in labels for item, label in enumerate(known)]
        assert block.labels.tolist() == [label or 0 for _, label in flat]
        assert block.labels.dtype == torch.int64
        assert block.weight.tolist() == [0.0 if label is None else 0.25 + item for item, label in flat]

    @quick
    @given(visits)
    def test_soft_labels_are_scores_of_classes(self, labels: list[list[int | None]]) -> None:
        made = [{"choose": self.rows(visit, known, soft=True)} for visit, known in enumerate(labels)]
        block = batch_of(made, {"choose": SOFT}, [len(known) for known in labels], images=2).blocks["choose"]
        flat = [(item, label) for known in labels for item, label in enumerate(known)]
        expected = torch.zeros(len(flat), CLASSES)
        for number, (_, label) in enumerate(flat):
            if label is not None:
                expected[number, label], expected[number, (label + 1) % CLASSES] = 0.5, 0.25
        assert torch.equal(block.labels, expected)
        assert block.weight.tolist() == [0.0 if label is None else 0.25 + item for item, label in flat]


def test_a_label_of_a_row_stays_with_its_row_when_rows_are_sorted() -> None:
    rows = [Row(f"q{n}", 0, image=image, pair="p", weight=n / 8, label=n) for n, image in enumerate((1, 0, 1, 0))]
    block = batch_of([{"match": rows}], {"match": MATCH}, [1], images=2).blocks["match"]
    assert block.image.tolist() == [0, 0, 1, 1]
    assert block.labels.tolist() == [1, 3, 0, 2]
    assert block.weight.tolist() == [1 / 8, 3 / 8, 0, 2 / 8]
    assert [said(ids)[:2] for ids in block.ids] == ["q1", "q3", "q0", "q2"]


class TestNothing:
    """Every rank runs the same layers, also where it has nothing to run them on."""

    def test_an_empty_micro_batch_has_the_images_of_a_sample_and_rows_of_weight_zero(self) -> None:
        batch = batch_of([], LAYOUTS, [], images=2)
        assert batch.shown.shape == (2, 3, SIZE, SIZE)
        assert not batch.shown.any()
        assert {name: block.image.tolist() for name, block in batch.blocks.items()} == {
            "ask": [0],
            "choose": [0, 1],
            "soft": [0, 1],
            "match": [0],
        }
        for name, block in batch.blocks.items():
            assert not block.item.any(), name
            assert not block.weight.any(), name
            assert not block.labels.any(), name
            assert block.ids.shape == block.mask.shape, name
        assert batch.blocks["soft"].labels.shape == (1, CLASSES)
        assert [len(batch.blocks[name].weight) for name in LAYOUTS] == [1, 1, 1, 1]
        assert batch.blocks["ask"].targets.weight.tolist() == [0.0]

    def test_a_block_without_rows_beside_one_with_rows_knows_all_items(self) -> None:
        visits = [{"ask": [Row("a", 0), Row("b", 1)], "choose": [], "soft": [], "match": []} for _ in range(2)]
        batch = batch_of(visits, LAYOUTS, [2, 2], images=2)
        assert batch.blocks["ask"].item.tolist() == [0, 1, 2, 3]
        assert [len(batch.blocks[name].weight) for name in LAYOUTS] == [4, 4, 4, 1]
        for name in ("choose", "soft", "match"):
            assert not batch.blocks[name].weight.any(), name
            assert int(batch.blocks[name].image.max()) < len(batch.shown), name


def example() -> Batch:
    targets = (Target("x", 1.0), Target("y", 0.3))
    visits = [
        {"ask": [Row("a", 0, targets=targets)], "match": [Row("a", 0, pair="x", label=1), Row("a", 0, pair="z")]},
        {
            "ask": [Row("b", 0, targets=targets), Row("c", 1, targets=targets)],
            "match": [Row("c", 1, pair="y", label=1)],
        },
    ]
    return batch_of(visits, {"ask": ASK, "match": MATCH}, [1, 2])


def test_a_batch_moves_with_everything_in_it() -> None:
    batch = example()
    moved = batch.to(torch.device("meta"))
    before, after = list(leaves(batch)), list(leaves(moved))
    assert [name for name, _ in before] == [name for name, _ in after]
    assert sum(isinstance(value, Tensor) for _, value in before) == 2 + 6 + 4 + 6, "pixels, scale, blocks and targets"
    for (name, value), (_, there) in zip(before, after, strict=True):
        if isinstance(value, Tensor):
            assert (there.device.type, there.shape, there.dtype) == ("meta", value.shape, value.dtype), name
        else:
            assert there == value, name
    assert type(moved) is Batch


def test_each_item_alone_reads_image_tokens_of_its_own() -> None:
    batch = example()
    alone = batch.each_item_alone()
    assert {name: block.image.tolist() for name, block in alone.blocks.items()} == {
        "ask": [0, 1, 2],
        "match": [0, 0, 2],
    }
    assert {name: block.rows_per_image for name, block in alone.blocks.items()} == {"ask": 1, "match": 2}
    for name, block in alone.blocks.items():
        whole = batch.blocks[name]
        assert block._replace(image=whole.image, rows_per_image=whole.rows_per_image) == whole, name
    assert alone.shown is batch.shown


def test_items_that_were_cut_are_counted_once_by_the_first_block() -> None:
    long = "x" * (CODEC.limit + 1)
    visit = {
        "match": [Row(long, 0, pair="a"), Row(long, 0, pair="b"), Row("short", 1, pair="a")],
        "ask": [Row(long, 0), Row(long, 1)],
    }
    pixels = [torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)]
    for first, counted in (("match", 1), ("ask", 2)):
        layouts = {name: {"ask": ASK, "match": MATCH}[name] for name in sorted(visit, key=lambda name: name != first)}
        _, cut = collate(pixels, [visit], layouts, items_per_visit=[2], loss_scale=1.0, blank=BLACK)
        assert cut == counted


def test_questions_alone_make_a_batch_without_answers() -> None:
    pixels = [torch.full((3, SIZE, SIZE), number, dtype=torch.uint8) for number in range(2)]
    batch = ask(pixels, [["a", "b"], ["c"]], ASK)
    assert list(batch.blocks) == ["ask"]
    block = batch.blocks["ask"]
    assert block.targets is None
    assert [said(ids) for ids in block.ids] == ["a", "b", "c"]
    assert block.image.tolist() == [0, 0, 1]
    assert torch.equal(batch.shown, torch.stack(pixels))
    assert batch.loss_scale == 1.0
