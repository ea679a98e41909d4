"""MP-DocVQA's rows: windows that hold the answer page for every epoch and seed, and documents that stay as they are."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.annotations import READERS
from shards.format.documents import Document, DocumentQuestion, Page, in_document_order
from shards.format.index import read_index
from shards.format.tar_reader import ShardReader
from shards.plan import EpochOrder, Order, Visits
from shards.tasks.mpdocvqa import narrowed, rows
from shards.tasks.seam import Draw, Row, Visit, Wanted
from tests.documents import write_mpdocvqa

draws = st.integers(0, 2**64 - 1)


@st.composite
def windows(draw: st.DrawFn) -> tuple[list[int], int]:
    """Pages by their places in a document, and which of them shows the answer."""
    first, length = draw(st.integers(0, 60)), draw(st.integers(1, 20))
    return list(range(first, first + length)), draw(st.integers(0, length - 1))


class TestNarrowed:
    @given(windows(), st.integers(1, 25), draws)
    def test_it_is_a_run_of_so_many_pages_with_the_answer(self, window: tuple[list[int], int], size: int, draw: int):
        pages, answer = window
        run = narrowed(pages, answer, size, draw)
        assert len(run) == min(size, len(pages))
        assert run.step == 1
        assert answer in run
        assert set(run) <= set(range(len(pages)))

    @given(windows(), st.integers(1, 6), draws)
    def test_of_draws_in_a_row_each_puts_the_answer_elsewhere(self, window, size: int, draw: int):
        pages, answer = window
        places = {answer - narrowed(pages, answer, size, draw + step).start for step in range(size)}
        in_the_middle = size - 1 <= answer <= len(pages) - size
        assert not in_the_middle or places == set(range(size))

    @given(st.integers(1, 40), st.integers(1, 6), draws)
    def test_answers_all_over_a_document_need_few_runs(self, length: int, size: int, draw: int):
        runs = {narrowed(range(length), answer, size, draw) for answer in range(length)}
        assert len(runs) <= -(-length // size) + 1

    @given(st.integers(8, 40), st.integers(1, 4), draws)
    def test_windows_of_a_document_share_the_runs_inside_of_both(self, length: int, size: int, draw: int):
        """A question's own window only shifts what would reach beyond it."""
        answer = length // 2
        whole = narrowed(range(length), answer, size, draw)
        part = narrowed(range(2, length - 1), answer - 2, size, draw)
        assert [place + 2 for place in part] == list(whole) or whole.start < 2 or whole.stop > length - 1


class TestOrder:
    def test_numbers_in_names_are_numbers(self):
        windows = [("d_p9", "d_p10", "d_p11"), ("d_p1", "d_p2"), ("d_p10",)]
        assert in_document_order(windows) == ("d_p1", "d_p2", "d_p9", "d_p10", "d_p11")

    def test_names_of_any_form_have_an_order(self):
        names = ("10", "a", "p1", "p01", "", "p1b", "9", "é", "²")
        assert set(in_document_order([names])) == set(names)
        assert in_document_order([names]) == in_document_order([names[::-1]])


class Built:
    """Shards of documents with their rows by seed and epoch."""

    def __init__(self, directory: Path) -> None:
        shards = write_mpdocvqa(directory / "files", num_samples=12, seed=1).build(directory / "shards")
        self.index = read_index(shards)
        self.reader = ShardReader(shards, self.index, READERS["mpdocvqa"].sample)

    def rows(
        self, sample: int, *, seed: int = 0, epoch: int = 0, pages: int | None = 2, is_training: bool = True
    ) -> list[Row]:
        order = Order(seed=seed, questions_per_visit=4, visits_per_step=2, lanes=1, shuffle_shards=2)
        visits = Visits(self.index.num_questions, order.questions_per_visit)
        drawn = EpochOrder(visits, self.index.first_image, order, epoch)
        items = self.reader.sample(sample).items
        first = int(visits.first_question[sample])
        visit = Visit(sample, items, list(range(first, first + len(items))))
        draw = Draw(drawn, self.index, self.reader, is_training)
        return rows(visit, draw, Wanted(blocks=frozenset({"ask"}), pages=pages)).blocks["ask"]

    @property
    def samples(self) -> range:
        return range(self.index.num_images)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("documents"))


def names(document: Document, row: Row) -> list[str]:
    return [document.pages[place].image_id for place in row.images]


class TestRows:
    def test_every_window_of_every_epoch_and_seed_shows_the_answer(self, built: Built):
        for sample in built.samples:
            document = built.reader.sample(sample)
            for seed in range(3):
                for epoch in range(6):
                    made = built.rows(sample, seed=seed, epoch=epoch)
                    assert [row.item for row in made] == list(range(len(document.questions)))
                    for question, row in zip(document.questions, made, strict=True):
                        shown = names(document, row)
                        assert len(shown) == min(2, len(question.pages))
                        assert set(shown) <= set(question.pages)
                        assert row.image == row.images[0]
                        if question.answers:
                            assert question.pages[question.answer_page] in shown
                            assert row.targets[0].text in question.answers

    def test_windows_and_answers_change_with_the_epoch_and_come_again(self, built: Built):
        every = [[built.rows(sample, epoch=epoch) for sample in built.samples] for epoch in (0, 1, 2, 0)]
        assert every[0] == every[3]
        assert len({str(epoch) for epoch in every}) == 3
        assert len({row.targets[0].text.startswith("No.") for epoch in every for made in epoch for row in made}) == 2

    def test_a_document_is_not_changed_by_its_epochs(self, built: Built):
        before = [repr(built.reader.sample(sample)) for sample in built.samples]
        for epoch in range(4):
            for sample in built.samples:
                built.rows(sample, epoch=epoch, pages=1)
        assert [repr(built.reader.sample(sample)) for sample in built.samples] == before

    def test_an_evaluation_reads_whole_windows_and_is_the_same_every_time(self, built: Built):
        for sample in built.samples:
            document = built.reader.sample(sample)
            made = built.rows(sample, is_training=False)
            assert made == built.rows(sample, seed=5, epoch=3, is_training=False)
            for question, row in zip(document.questions, made, strict=True):
                assert names(document, row) == list(question.pages)
                assert row.targets[0].text == (question.answers[0] if question.answers else "")

    def test_a_question_without_answers_weighs_nothing(self, built: Built):
        weights = {
            bool(question.answers): (row.weight, row.targets[0].weight)
            for sample in built.samples
            for question, row in zip(built.reader.sample(sample).questions, built.rows(sample), strict=True)
        }
        assert weights == {True: (1.0, 1.0), False: (0.0, 0.0)}

    def test_pages_are_named_by_place_in_the_document_whatever_the_order_of_a_window(self):
        pages = tuple(Page(image_id=f"p{number}", width=1, height=1) for number in range(4))
        question = DocumentQuestion(question_id="1", question="?", pages=("p3", "p1"), answers=("a",), answer_page=0)
        document = Document(document_id="d", pages=pages, questions=(question,))
        order = Order(seed=0, questions_per_visit=1, visits_per_step=1, lanes=1, shuffle_shards=1)
        epoch = EpochOrder(Visits(np.array([1]), 1), np.array([0, 1]), order, 0)
        draw = Draw(epoch, None, SimpleNamespace(sample=lambda _: document), True)
        for size, shown in ((None, (1, 3)), (1, (3,))):
            (row,) = rows(Visit(0, [question], [0]), draw, Wanted(blocks=frozenset({"ask"}), pages=size)).blocks["ask"]
            assert row.images == shown
