"""Documents on their way to a model: a question is shown the pages of its window and no others, whatever stands beside
it in the visit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from shards.format.index import SplitIndex
from shards.plan import Order, Share
from shards.read.collation import Collated, SeenVisit
from shards.read.eyes import Augment
from shards.read.micro_batches import EvaluationBatches, Split, Texts, TrainingBatches
from shards.read.windows import by_window
from shards.tasks.seam import Row, Rows, Visit, Wanted
from tests.documents import write_mpdocvqa

NUM_DOCUMENTS = 9
ALONE = Share(rank=0, world_size=1, micro_visits=2)


class Bytes:
    """Shows an image as the file that it is."""

    blank = b""

    def see(self, data: bytes, where: str, augment: Augment | None = None) -> bytes:  # noqa: ARG002
        return bytes(data)


@dataclass(frozen=True)
class Seen:
    """What was collated, as it came."""

    visits: Sequence[SeenVisit]

    def to(self, device: torch.device) -> "Seen":  # noqa: ARG002
        return self


class KeptAsSeen:
    modules: frozenset[str] = frozenset()

    def eyes(self, index: SplitIndex, image_size: int | None) -> Bytes:  # noqa: ARG002
        return Bytes()

    def collate(self, visits: Sequence[SeenVisit], **_: object) -> Collated:
        return Collated(Seen(visits), 0)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    files = write_mpdocvqa(tmp_path / "files", num_samples=NUM_DOCUMENTS, seed=3, whole=True)
    files.build(tmp_path / "shards")
    return tmp_path


@pytest.fixture
def split(files: Path) -> Split:
    order = Order(seed=1, questions_per_visit=4, visits_per_step=2, lanes=1, shuffle_shards=2)
    return Split(str(files / "shards"), order)


@pytest.fixture
def pages(files: Path) -> Mapping[bytes, str]:
    """Which page it is that has these bytes."""
    return {path.read_bytes(): path.stem for path in (files / "files" / "images").iterdir()}


def texts(pages: int | None) -> Texts:
    return Texts(task="mpdocvqa", collation=KeptAsSeen(), wanted=Wanted(blocks=frozenset({"ask"}), pages=pages))


def num_questions(split: Split) -> int:
    return int(split.index.num_questions.sum())


def test_an_evaluation_shows_every_question_its_own_window(split: Split, pages: Mapping[bytes, str]):
    batches, met = EvaluationBatches(split, texts(2), None, ALONE), 0
    for key in batches.all_keys():
        made = batches.prepare(*key)
        items, shown = iter(made.items), []
        assert len(made.samples) == len(made.batch.visits)
        for visit in made.batch.visits:
            window = tuple(pages[image] for image in visit.images)
            shown.append(window)
            assert len(visit.rows["ask"]) == visit.num_items
            for number, row in enumerate(visit.rows["ask"]):
                question = next(items)
                assert (row.item, row.text) == (number, question.question)
                assert row.images == tuple(range(len(window)))
                assert window == question.pages
                met += 1
        firsts = [sum(map(len, shown[:number])) for number in range(len(shown))]
        assert made.item_images == tuple(
            first for first, visit in zip(firsts, made.batch.visits, strict=True) for _ in range(visit.num_items)
        )
        assert next(items, None) is None
    assert met == num_questions(split)


def test_training_shows_pages_of_the_window_with_the_answer(split: Split, pages: Mapping[bytes, str]):
    batches = TrainingBatches(split, texts(2), None, ALONE)
    for epoch in range(3):
        met = 0
        for step in range(split.steps_per_epoch):
            for micro in range(batches.accumulation):
                for visit in batches.prepare(epoch, step, micro).batch.visits:
                    shown = [pages[image] for image in visit.images]
                    assert 1 <= len(shown) <= 2
                    for row in visit.rows["ask"]:
                        answer = row.targets[0].text.removeprefix("No. ")  # document.page
                        number, page = answer.split(".")
                        assert f"ffbf{int(number):04d}_p{page}" in shown
                        met += 1
        assert met == num_questions(split)


def test_questions_of_one_window_stand_behind_it_together(split: Split):
    batches = EvaluationBatches(split, texts(None), None, ALONE)
    for key in batches.all_keys():
        made = batches.prepare(*key)
        windows = [(sample, tuple(visit.images)) for sample, visit in zip(made.samples, made.batch.visits, strict=True)]
        assert len(set(windows)) == len(windows)


def test_windows_come_in_the_order_of_their_first_items_and_lose_nothing():
    rows = [Row(f"q{item}", item, images=images) for item, images in enumerate([(0, 1), (2,), (0, 1), (1,), (2,)])]
    visit = Visit(7, [f"i{item}" for item in range(5)], [10, 11, 12, 13, 14])
    parts = list(by_window(visit, Rows({"ask": rows}, missing=3)))
    assert [(part.sample, part.items, part.numbers) for part, _ in parts] == [
        (7, ["i0", "i2"], [10, 12]),
        (7, ["i1", "i4"], [11, 14]),
        (7, ["i3"], [13]),
    ]
    assert [[(row.text, row.item) for row in made.blocks["ask"]] for _, made in parts] == [
        [("q0", 0), ("q2", 1)],
        [("q1", 0), ("q4", 1)],
        [("q3", 0)],
    ]
    assert [made.missing for _, made in parts] == [3, 0, 0]
