"""The small model that reads pages: what it is shown and told, and that it is one that a recipe can name."""

from itertools import islice, repeat
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.page_reader import (
    MAX_SAID,
    PAGES_PER_STEP,
    PATCH,
    SEEN,
    documents,
    make_model,
    make_processor,
    teach,
    waves,
    write_page_reader,
)
from model.vlm.checkpoint import end_ids_of, load_checkpoint
from model.vlm.prompt import ChatPrompt, Turn
from shards.scenes.documents import KEYS, LINES, MAX_PAGES, VALUES, draw

NUM_TOKENS = (SEEN // PATCH) ** 2


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reader")
    write_page_reader(directory, seed=3, steps=1)
    return directory


def test_keys_and_digits_are_single_tokens_and_come_back_as_they_were():
    tokenizer = make_processor().tokenizer
    for value in (VALUES.start, VALUES.stop - 1):
        said = f"{KEYS[0]} {value} {KEYS[-1]} {value}"
        ids = tokenizer(said)["input_ids"]
        assert len(ids) == 2 * (1 + len(str(value)))
        assert tokenizer.decode(ids) == said


def test_whatever_is_changed_on_a_page_changes_what_is_seen_of_it():
    photos = make_processor().image_processor
    lines = [(key, "100") for key in KEYS[:LINES]]
    seen = photos(draw(tuple(lines)), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    assert seen.shape == (1, 3, SEEN, SEEN)
    for place in range(LINES):
        for value in ("900", "190", "109"):
            other = draw((*lines[:place], (lines[place][0], value), *lines[place + 1 :]))
            changed = photos(other, return_tensors="pt", input_data_format="channels_last")["pixel_values"] != seen
            rows = changed.any(dim=1).flatten(1).nonzero()[:, 1] // SEEN
            assert set((rows // PATCH).tolist()) == {place}


def test_every_place_has_a_wave_of_its_own():
    made = waves(SEEN // PATCH, 32)
    assert made.shape == (NUM_TOKENS, 32)
    assert torch.cdist(made, made).fill_diagonal_(torch.inf).min() > 0.5


def test_pages_are_said_whole_in_an_order_that_is_drawn():
    processor = make_processor()
    pixels, num_pages, said = next(documents(np.random.default_rng(0), processor, in_order=0, alone=1))
    again, _, _ = next(documents(np.random.default_rng(0), processor, in_order=0, alone=1))
    assert torch.equal(pixels, again)
    assert num_pages == 1
    assert said.shape == (len(pixels), 4 * LINES)
    keys = {tuple(row) for row in said[:, ::4].tolist()}
    assert len(keys) == len(pixels)
    assert all(len(set(row)) == LINES for row in keys)


def test_the_first_pages_are_said_from_the_top_to_the_bottom():
    processor = make_processor()
    pixels, _, said = next(documents(np.random.default_rng(0), processor, in_order=1, alone=1))
    texts = [processor.tokenizer.decode(row).split() for row in said]
    for page, words in zip(pixels, texts, strict=True):
        drawn = draw(tuple(zip(words[::2], words[1::2], strict=True)))
        seen = processor.image_processor(drawn, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        assert torch.equal(seen[0], page)


def test_of_many_pages_some_lines_are_said_from_anywhere():
    given = documents(np.random.default_rng(0), make_processor(), in_order=0, alone=0)
    steps = list(islice(given, 40))
    assert {step.num_pages for step in steps} == set(range(1, MAX_PAGES + 1))
    for pixels, num_pages, said in steps:
        assert len(pixels) == num_pages * len(said) <= PAGES_PER_STEP
        assert said.shape[1] == 4 * min(MAX_SAID, LINES * num_pages)
        assert all(len(set(row[::4])) == len(row) // 4 for row in said.tolist())


def test_it_learns_what_it_is_shown():
    torch.manual_seed(0)
    processor = make_processor()
    model = make_model(processor.tokenizer)
    step = next(documents(np.random.default_rng(0), processor, in_order=0, alone=1))
    first = teach(model, processor, repeat(step), 1)
    teach(model, processor, repeat(step), 60)
    assert teach(model, processor, repeat(step), 1) < 0.5 * first


def test_a_recipe_can_name_it(written: Path):
    model, processor = load_checkpoint(str(written))
    ends = end_ids_of(model, processor)
    limits = {"max_question_tokens": 24, "max_answer_tokens": 6}
    prompt = ChatPrompt.of(processor, end_ids=ends, system=None, source="it", **limits)
    row = prompt.row(1, [Turn(f"What is the {KEYS[0]}?", "123")])
    ((start, stop),) = row.spans
    assert stop - start == 4
    assert row.ids[stop - 1] in ends
    assert prompt.decode([row.ids[start:stop]]) == ["123"]
    (ids,) = prompt.encode([prompt.prefix(1)], [[torch.from_numpy(draw(()).transpose(2, 0, 1).copy())]])["input_ids"]
    assert (ids == processor.image_token_id).sum() == NUM_TOKENS
