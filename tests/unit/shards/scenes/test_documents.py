"""Drawn documents: official files, pages that can be read back, and nothing that a text or another page tells."""

import io
import json
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.build.verify import verify_shards
from shards.build.writer import build_shards
from shards.errors import UserError
from shards.format.index import read_index
from shards.scenes.command import TASKS, task_files, write_scenes
from shards.scenes.documents import (
    INK,
    KEYS,
    LINES,
    MARGIN,
    MAX_PAGES,
    MIN_IMAGES,
    NUM_QUESTIONS,
    PAGE_SIZE,
    PAPER,
    SCALE,
    SPLITS,
    VALUES,
    document,
    draw,
    image_counts,
    top_of,
)
from shards.scenes.letters import GAP, HEIGHT, WIDTH, written

SEED = 3
NUM_IMAGES = 300
ALPHABET = " ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return dict(task_files("mpdocvqa", num_images=NUM_IMAGES, seed=SEED))


@pytest.fixture(scope="module")
def questions(files: dict[str, bytes]) -> dict[str, list[dict]]:
    return {split: json.loads(files[f"{split}.json"])["data"] for split in SPLITS}


def read_page(pixels: np.ndarray) -> list[str]:
    """The lines of a page, letter by letter."""
    glyphs = {written(letter, SCALE).tobytes(): letter for letter in ALPHABET}
    lines = []
    for place in range(LINES):
        top = top_of(place)
        line = ""
        for left in range(MARGIN, PAGE_SIZE - WIDTH * SCALE + 1, (WIDTH + GAP) * SCALE):
            cell = pixels[top : top + HEIGHT * SCALE, left : left + WIDTH * SCALE, 0] == INK
            line += glyphs[np.ascontiguousarray(cell).tobytes()]
        lines.append(line.rstrip())
    return lines


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not():
    first, again, other = (dict(task_files("mpdocvqa", num_images=MIN_IMAGES, seed=seed)) for seed in (5, 5, 6))
    assert first == again
    assert all(first[path] != other[path] for path in first if path.startswith("images/"))


def test_the_fewest_pages_leave_no_split_empty():
    counts = TASKS["mpdocvqa"].image_counts(MIN_IMAGES)
    assert (counts.total(), set(counts)) == (MIN_IMAGES, set(SPLITS))


def test_letters_all_differ():
    assert len({written(letter, 1).tobytes() for letter in ALPHABET}) == len(ALPHABET)


def test_a_page_can_be_read_back_and_fits(files: dict[str, bytes]):
    longest = max(len(key) for key in KEYS) + len(" 100")
    assert MARGIN + longest * (WIDTH + GAP) * SCALE <= PAGE_SIZE
    for number in range(MAX_PAGES):
        drawn = document(SEED, number)
        assert len(drawn.pages) == number + 1
        for page, lines in enumerate(drawn.pages):
            stored = np.asarray(Image.open(io.BytesIO(files[f"images/{drawn.page_id(page)}.png"])))
            assert np.array_equal(stored, draw(lines))
            assert set(np.unique(stored)) == {INK, PAPER}
            assert read_page(stored) == [f"{key} {value}" for key, value in lines]


def test_a_key_and_a_value_stand_once_in_a_document():
    for number in range(24):
        lines = [line for page in document(SEED, number).pages for line in page]
        keys, values = zip(*lines, strict=True)
        assert len(set(keys)) == len(set(values)) == len(lines) == LINES * (1 + number % MAX_PAGES)
        assert all(int(value) in VALUES for value in values)


def test_questions_are_of_the_official_form_and_true(questions: dict[str, list[dict]]):
    fields = ["questionId", "question", "doc_id", "page_ids", "answers", "answer_page_idx", "data_split"]
    numbers = [asked["questionId"] for asked in chain.from_iterable(questions.values())]
    assert len(set(numbers)) == len(numbers)
    for split, data in questions.items():
        for asked in data:
            assert list(asked) == fields
            assert asked["data_split"] == split
            drawn = document(SEED, int(asked["doc_id"].removeprefix("doc")))
            page = asked["page_ids"][asked["answer_page_idx"]]
            lines = drawn.pages[int(page.rpartition("_p")[2])]
            key = asked["question"].removeprefix("What is the ").removesuffix("?")
            assert [dict(lines)[key]] == asked["answers"]
        assert all(count == NUM_QUESTIONS for count in Counter(asked["doc_id"] for asked in data).values())


def test_windows_differ_inside_a_document_and_the_page_may_be_anywhere_in_them(questions: dict[str, list[dict]]):
    windows: dict[str, set] = {}
    places = Counter()
    for asked in questions["train"]:
        windows.setdefault(asked["doc_id"], set()).add(tuple(asked["page_ids"]))
        places[asked["answer_page_idx"]] += 1
    assert sum(len(found) > 1 for found in windows.values()) > len(windows) / 2
    assert set(places) == set(range(MAX_PAGES))


def test_the_question_alone_tells_no_answer(questions: dict[str, list[dict]]):
    answers = Counter(asked["answers"][0] for asked in questions["train"])
    assert max(answers.values()) < 0.03 * answers.total()


def test_splits_share_no_document(questions: dict[str, list[dict]], files: dict[str, bytes]):
    documents = [{asked["doc_id"] for asked in data} for data in questions.values()]
    assert sum(map(len, documents)) == len(set().union(*documents))
    assert image_counts(NUM_IMAGES).total() == sum(path.startswith("images/") for path in files) <= NUM_IMAGES


def test_the_command_writes_what_shards_are_built_from(tmp_path: Path):
    assert write_scenes(tmp_path / "out", num_images=40, seed=1, task="mpdocvqa")
    assert not write_scenes(tmp_path / "out", num_images=40, seed=1, task="mpdocvqa")
    with pytest.raises(UserError, match=f"--images {MIN_IMAGES - 1}: expected at least {MIN_IMAGES}"):
        write_scenes(tmp_path / "fewer", num_images=MIN_IMAGES - 1, seed=1, task="mpdocvqa")
    given = {"format": "mpdocvqa", "images": tmp_path / "out" / "images"}
    for split in SPLITS:
        build_shards(**given, questions=[tmp_path / "out" / f"{split}.json"], out=tmp_path / split)
        assert verify_shards(tmp_path / split).faults == []
        lengths = [count for shard in read_index(tmp_path / split).shards for count in shard.images_per_sample or [1]]
        assert sum(lengths) <= image_counts(40)[split]
