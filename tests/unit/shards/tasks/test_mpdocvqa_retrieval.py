"""Which pages a question is compared with: its answer page always, others by hash, none beside its window."""

import pytest

from shards.errors import DataError
from shards.plan import Order
from shards.read.micro_batches import Split
from shards.tasks import TASKS
from shards.tasks.seam import Draw, Row, Visit, Wanted
from tests.documents import write_mpdocvqa

TASK = TASKS["mpdocvqa_retrieval"]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    directory = tmp_path_factory.mktemp("documents")
    out = write_mpdocvqa(directory / "files", num_samples=10, seed=1).build(directory / "shards")
    return Split(str(out), Order(seed=5, questions_per_visit=4, visits_per_step=4, lanes=4, shuffle_shards=2))


def rows(split: Split, sample: int, *, pages: int | None, epoch: int = 0, training: bool = True) -> list[Row]:
    items, first = split.reader.sample(sample).items, int(split.visits.first_question[sample])
    visit = Visit(sample, items, list(range(first, first + len(items))))
    draw = Draw(split.epoch(epoch), split.index, split.reader, is_training=training)
    return TASK.rows(visit, draw, Wanted(blocks=frozenset({"find"}), pages=pages)).blocks["find"]


def documents(split: Split):
    for sample in range(split.index.num_images):
        document = split.reader.sample(sample)
        yield sample, document, document.questions


@pytest.mark.parametrize("pages", [2, 3, None])
def test_the_answer_page_is_labelled_in_every_epoch_and_the_window_is_never_left(split: Split, pages: int | None):
    for epoch in range(4):
        for sample, document, questions in documents(split):
            for row, question in zip(rows(split, sample, pages=pages, epoch=epoch), questions, strict=True):
                window = [document.places[name] for name in question.pages]
                assert [place for place in window if place in row.images] == list(row.images)
                assert row.weight == float(question.answer_page is not None)
                if question.answer_page is not None:
                    assert row.images[row.label] == window[question.answer_page]
                assert len(row.images) >= min(pages or len(window), len(window))


def test_other_pages_are_drawn_anew_in_each_epoch_and_can_be_had_again(split: Split):
    seen = {}
    for epoch in range(32):
        found = {sample: rows(split, sample, pages=2, epoch=epoch) for sample, _, _ in documents(split)}
        assert found == {sample: rows(split, sample, pages=2, epoch=epoch) for sample, _, _ in documents(split)}
        for sample, made in found.items():
            seen.setdefault(sample, set()).update(place for row in made for place in row.images)
    for sample, document, questions in documents(split):
        if max(len(question.pages) for question in questions) <= 5:
            assert seen[sample] == set(range(len(document.pages))), "each page of a document has its turn"


def test_what_a_question_draws_does_not_depend_on_the_others_of_its_visit(split: Split):
    sample = next(sample for sample, _, questions in documents(split) if len(questions) > 2)
    items, first = split.reader.sample(sample).items, int(split.visits.first_question[sample])
    draw = Draw(split.epoch(0), split.index, split.reader, is_training=True)
    wanted = Wanted(blocks=frozenset({"find"}), pages=2)
    together = rows(split, sample, pages=2)
    for place, item in enumerate(items):
        (alone,) = TASK.rows(Visit(sample, [item], [first + place]), draw, wanted).blocks["find"]
        assert set(alone.images) <= set(together[place].images)
        assert len(alone.images) == min(2, len(item.pages))


def test_an_evaluation_compares_whole_windows(split: Split):
    for sample, document, questions in documents(split):
        for row, question in zip(rows(split, sample, pages=2, training=False), questions, strict=True):
            assert row.images == tuple(document.places[name] for name in question.pages)


class TestRetrieved:
    """Reading the pages that were found."""

    def ask(self, split: Split, found: dict[str, tuple[str, ...]], *, training: bool = False) -> list[Row]:
        sample = max(range(split.index.num_images), key=lambda number: len(split.reader.sample(number).pages))
        items, first = split.reader.sample(sample).items, int(split.visits.first_question[sample])
        visit = Visit(sample, items, list(range(first, first + len(items))))
        draw = Draw(split.epoch(0), split.index, split.reader, is_training=training)
        wanted = Wanted(blocks=frozenset({"ask"}), retrieved=found)
        return TASKS["mpdocvqa"].rows(visit, draw, wanted).blocks["ask"]

    def found(self, split: Split, pages: slice) -> dict[str, tuple[str, ...]]:
        return {item.item_id: item.pages[pages] for _, _, items in documents(split) for item in items}

    def test_an_evaluation_reads_them_in_the_order_of_the_document_and_training_does_not(self, split: Split):
        read = self.ask(split, self.found(split, slice(None, -3, -1)))
        assert all(len(row.images) <= 2 and list(row.images) == sorted(row.images) for row in read)
        whole = self.ask(split, self.found(split, slice(0, 1)), training=True)
        assert max(len(row.images) for row in whole) == 12

    def test_a_question_without_pages_and_a_page_beside_the_window_are_named(self, split: Split):
        with pytest.raises(DataError, match=r"data.retrieved: question \d+ is not in the file; evaluate the retrieval"):
            self.ask(split, {})
        strange = dict.fromkeys(self.found(split, slice(0, 1)), ("ffbf9999_p0",))
        with pytest.raises(DataError, match="is not asked of page ffbf9999_p0, which the file names"):
            self.ask(split, strange)
