"""What a model is given of visits: the images that its rows name, in their order, and what it makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch

from shards.plan import Order
from shards.read.collate import Batch, Layout, SeenRegions
from shards.read.collation import BlockCollation, Collated, SeenVisit, first_images
from shards.read.eyes import Eyes, SquareEyes
from shards.read.micro_batches import EvaluationBatches, Split, Texts, alone
from shards.tasks import TASKS
from shards.tasks.seam import Block, Row, Rows, Visit, Wanted
from tests.rows import LetterCodec
from tests.task_corpora import write_task

SIZE = 12


@dataclass
class Keeping:
    """A collation that keeps what it is given."""

    given: list[Sequence[SeenVisit]] = field(default_factory=list)
    asked: list[bool] = field(default_factory=list)

    @property
    def modules(self) -> set[str]:
        return {__name__}

    def eyes(self, index: object, image_size: int | None) -> Eyes:  # noqa: ARG002
        return SquareEyes(SIZE)

    def collate(
        self, visits: Sequence[SeenVisit], *, loss_scale: float, eyes: Eyes, blanks: int, answering: bool
    ) -> Collated:
        self.given.append(visits)
        self.asked.append(answering)
        shown = torch.stack([image for visit in visits for image in visit.images] or [eyes.blank] * blanks)
        return Collated(Batch(shown, {}, torch.tensor(loss_scale)), 0)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Samples of two images each."""
    data = write_task(tmp_path_factory.mktemp("pairs"), "nlvr2")
    order = Order(seed=1, questions_per_visit=4, visits_per_step=2, lanes=1, shuffle_shards=2)
    return Split(data["train"], order)


def windows(visit: Visit, *_: object) -> Rows:
    """Items of every other sample read both images, the others the second one."""
    images = (0, 1) if visit.sample % 2 else (1,)
    rows = [Row(str(item), item, image=images[0], images=images) for item in range(len(visit.items))]
    return Rows({"ask": rows})


def only_second(visit: Visit, *_: object) -> Rows:
    return Rows({"ask": [Row(str(item), item, image=1) for item in range(len(visit.items))]})


def given(split: Split, monkeypatch: pytest.MonkeyPatch, rows: object, **options: bool) -> list[SeenVisit]:
    monkeypatch.setitem(TASKS, "nlvr2", replace(TASKS["nlvr2"], rows=rows, images=None))
    keeping = Keeping()
    texts = Texts(task="nlvr2", collation=keeping, wanted=Wanted(blocks=frozenset({"ask"})))
    batches = EvaluationBatches(split, texts, None, alone(2), **options)
    found = [batches.prepare(*key) for key in batches.all_keys()]
    assert all(keeping.asked)
    assert [visit.num_items for visits in keeping.given for visit in visits]
    for item, visits in zip(found, keeping.given, strict=True):
        firsts = [
            first for first, visit in zip(first_images(visits), visits, strict=True) for _ in range(visit.num_items)
        ]
        assert list(item.item_images) == firsts
    return [visit for visits in keeping.given for visit in visits]


def test_a_visit_shows_the_images_that_its_rows_name(pairs: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = given(pairs, monkeypatch, windows)
    assert {len(visit.images) for visit in whole} == {1, 2}
    for visit in whole:
        places = tuple(range(len(visit.images)))
        assert all(row.images == places and row.image == 0 for row in visit.rows["ask"])
        assert ".tar" in visit.where
    second = given(pairs, monkeypatch, only_second)
    for one, other in zip(second, whole, strict=True):
        assert len(one.images) == 1
        assert torch.equal(one.images[0], other.images[-1])
        assert all(row.image == 0 for row in one.rows["ask"])


def test_images_of_another_sample_take_the_same_places(pairs: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    own = given(pairs, monkeypatch, only_second)
    other = given(pairs, monkeypatch, only_second, shuffle_images=True)
    shown = [visit.images[0] for visit in other]
    assert not any(torch.equal(one.images[0], image) for one, image in zip(own, shown, strict=True))


@pytest.mark.parametrize("counts", [(1, 1), (3, 1), (2, 4, 1)])
def test_rows_point_to_their_images_whatever_number_each_visit_has(counts: tuple[int, ...]) -> None:
    collation = BlockCollation({"ask": Layout(block=Block(tower="answer"), codec=LetterCodec())})
    visits = [
        SeenVisit(
            [torch.full((3, SIZE, SIZE), 10 * number + image, dtype=torch.uint8) for image in range(count)],
            {"ask": [Row("what", image, image=image) for image in range(count)]},
            count,
            "a sample",
        )
        for number, count in enumerate(counts)
    ]
    batch, _ = collation.collate(visits, loss_scale=1.0, eyes=SquareEyes(SIZE), blanks=1, answering=False)
    block = batch.blocks["ask"]
    expected = [10 * number + image for number, count in enumerate(counts) for image in range(count)]
    assert batch.shown[block.image, 0, 0, 0].tolist() == expected
    assert block.item.tolist() == list(range(sum(counts)))


def test_images_change_places_only_between_samples_that_have_as_many() -> None:
    batch = Batch(torch.zeros(5, 3, SIZE, SIZE), {}, torch.tensor(1.0))
    assert batch.with_images_exchanged(2) is None
    assert batch.with_images_exchanged(5) is not None
    regions = Batch(SeenRegions(torch.zeros(4, 2, 3), torch.zeros(4, 2, 4)), {}, torch.tensor(1.0))
    assert regions.with_images_exchanged(2).num_images == 4
