"""GQA's rows: every question to answer, its answer to match, and what the data offers that is wrong."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from shards.plan import Order
from shards.read.micro_batches import Split
from shards.tasks.gqa import DATA, rows
from shards.tasks.seam import Draw, Row, Rows, Target, Visit, Wanted
from tests.corpora import build_corpus

ORDER = Order(seed=3, questions_per_visit=3, visits_per_step=4, lanes=2, shuffle_shards=2)
BLOCKS = frozenset({"ask", "match"})
KINDS = [(), ("answer",), ("question",), ("answer", "question")]


def open_split(directory: Path, **corpus: int) -> Split:
    shards, _ = build_corpus(directory, **corpus)
    return Split(str(shards), ORDER)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return open_split(tmp_path_factory.mktemp("gqa"), num_images=12, questions_per_image=6)


def visit_of(split: Split, image: int) -> Visit:
    items, first = split.reader.sample(image).items, int(split.visits.first_question[image])
    return Visit(image, items, range(first, first + len(items)))


def rows_of(split: Split, visit: Visit, *kinds: str, blocks: frozenset[str] = BLOCKS) -> Rows:
    draw = Draw(split.epoch(1), split.index, split.reader)
    return rows(visit, draw, Wanted(blocks=blocks, negatives=kinds))


def unanswered(visit: Visit, item: int) -> Visit:
    """The visit with a question whose answer nobody knows."""
    items = list(visit.items)
    items[item] = replace(items[item], answer=None)
    return visit._replace(items=items)


def test_every_question_is_asked_in_order_with_its_answer(split: Split) -> None:
    for image in range(split.index.num_images):
        visit = visit_of(split, image)
        assert rows_of(split, visit).blocks["ask"] == [
            Row(question.question, item, targets=(Target(question.answer, 1.0),))
            for item, question in enumerate(visit.items)
        ]


@pytest.mark.parametrize("kinds", KINDS)
def test_right_and_wrong_weigh_a_half_each_and_what_is_missing_is_counted(split: Split, kinds: tuple[str, ...]) -> None:
    found = 0
    for image in range(split.index.num_images):
        visit = visit_of(split, image)
        made = rows_of(split, visit, *kinds)
        matches = made.blocks["match"]
        assert [row.item for row in matches] == sorted(row.item for row in matches)
        for item, question in enumerate(visit.items):
            own, *negatives = (row for row in matches if row.item == item)
            assert own == Row(question.question, item, pair=question.answer, weight=0.5, label=1)
            assert len(negatives) <= len(kinds)
            for negative in negatives:
                assert (negative.label, negative.weight) == (0, 0.5 / len(kinds))
                assert (negative.text, negative.pair) != (own.text, own.pair)
            found += len(negatives)
        assert made.missing == len(kinds) * len(visit.items) - (len(matches) - len(visit.items))
    assert (found > 0) == bool(kinds)


def test_a_kind_of_negative_changes_what_it_says_it_changes(split: Split) -> None:
    visit = visit_of(split, 0)
    for kind in ("answer", "question"):
        for row in rows_of(split, visit, kind).blocks["match"]:
            if row.label == 0:
                asked = visit.items[row.item]
                assert (row.text == asked.question) == (kind == "answer")
                assert kind == "question" or row.pair != asked.answer


def test_what_the_data_does_not_offer_is_left_out_and_the_others_keep_their_weight(tmp_path: Path) -> None:
    alone = open_split(tmp_path, num_images=1, questions_per_image=4)
    visit = visit_of(alone, 0)
    made = rows_of(alone, visit, "answer", "question")
    negatives = [row for row in made.blocks["match"] if row.label == 0]
    assert made.missing == 2 * len(visit.items) - len(negatives) >= len(visit.items), "no image is there to ask about"
    assert {row.weight for row in negatives} == {0.25}


def test_a_question_without_an_answer_is_asked_and_has_nothing_to_match(split: Split) -> None:
    whole = visit_of(split, 3)
    for item in range(len(whole.items)):
        visit = unanswered(whole, item)
        made, known = rows_of(split, visit, "answer", "question"), rows_of(split, whole, "answer", "question")
        assert made.blocks["ask"][item] == Row(visit.items[item].question, item, targets=(Target("", 0.0),))
        assert made.blocks["match"] == [row for row in known.blocks["match"] if row.item != item]
        negatives = sum(row.label == 0 and row.item == item for row in known.blocks["match"])
        assert made.missing == known.missing + negatives


@pytest.mark.parametrize("blocks", [(), ("ask",), ("match",), ("ask", "match")])
def test_only_what_is_wanted_is_made(split: Split, blocks: tuple[str, ...]) -> None:
    visit = visit_of(split, 1)
    made, everything = (
        rows_of(split, visit, "answer", "question", blocks=frozenset(wanted)) for wanted in (blocks, BLOCKS)
    )
    assert made.blocks == {name: everything.blocks[name] for name in blocks}
    assert made.missing == (everything.missing if "match" in blocks else 0)


def test_the_same_visit_has_the_same_rows_and_another_epoch_other_negatives(split: Split) -> None:
    visits = [visit_of(split, image) for image in range(split.index.num_images)]
    first = [rows_of(split, visit, "answer", "question") for visit in visits]
    assert [rows_of(split, visit, "answer", "question") for visit in visits] == first
    draw = Draw(split.epoch(2), split.index, split.reader)
    wanted = Wanted(blocks=BLOCKS, negatives=("answer", "question"))
    assert [rows(visit, draw, wanted) for visit in visits] != first


def test_a_row_of_a_block_is_as_the_block_says(split: Split) -> None:
    made = rows_of(split, visit_of(split, 2), "answer", "question").blocks
    assert made.keys() == DATA.blocks.keys()
    for name, block in DATA.blocks.items():
        assert {row.pair is not None for row in made[name]} == {block.paired}
        assert {row.image for row in made[name]} == set(range(DATA.images))
