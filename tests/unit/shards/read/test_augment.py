"""RandAugment of training pictures: a pure function of the position in a run, and nobody else's random numbers."""

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from shards.format.records import Question, Statement
from shards.read.augment import (
    FILL,
    GEOMETRIC,
    RandAugment,
    Shifts,
    Turns,
    augment_fault,
    changes,
    tells_heights,
    tells_sides,
)

CONFIG = "rand-m9-n3-mstd0.5"
STRINGS = ("rand-m9-mstd0.5", "rand-m7-n3-p0.8-mmax20-inc1", "rand-m9-tweights", "rand-t3aw", "rand-m5-tgeometric")


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def pixels(augment: RandAugment, *, epoch: int = 1, sample: int = 3) -> bytes:
    return augment(picture(), epoch=epoch, sample=sample).tobytes()


def test_a_picture_depends_on_seed_epoch_and_sample_alone():
    expected = pixels(RandAugment(CONFIG, 5))
    random.seed(1)
    np.random.seed(1)
    augment = RandAugment(CONFIG, 5)
    for other in (8, 2, 3):
        pixels(augment, sample=other)
    assert pixels(augment) == expected
    assert pixels(pickle.loads(pickle.dumps(augment))) == expected
    others = [pixels(augment, sample=sample) for sample in range(10)]
    assert len(set(others)) > 5
    assert len({pixels(augment, epoch=epoch) for epoch in range(10)}) > 5
    assert len({pixels(RandAugment(CONFIG, seed)) for seed in range(10)}) > 5


@pytest.mark.parametrize("config", STRINGS)
def test_the_global_generators_are_where_they_were(config):
    random.seed(7)
    np.random.seed(7)
    python, numpy, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    pixels(RandAugment(config, 5))
    assert random.getstate() == python
    for before, after in zip(numpy, np.random.get_state(), strict=True):
        assert np.array_equal(before, after)
    assert torch.equal(torch.get_rng_state(), torchs)


def test_they_are_put_back_when_an_operation_fails():
    augment, before = RandAugment("rand-p1", 5), random.getstate()
    with pytest.raises(AttributeError):
        augment(None, epoch=0, sample=1)
    assert random.getstate() == before


@pytest.mark.parametrize("config", STRINGS)
def test_the_size_stays_and_the_string_is_one_of_timms(config):
    assert augment_fault(config) is None
    augmented = RandAugment(config, 5)(picture(), epoch=0, sample=1)
    assert (augmented.size, augmented.mode) == ((30, 20), "RGB")


def test_what_comes_out_is_what_timm_makes_of_its_string():
    augment = RandAugment(CONFIG, 5)
    timms = rand_augment_transform(CONFIG, {"img_mean": FILL})
    assert [str(op) for op in augment._transform.ops] == [str(op) for op in timms.ops]
    assert augment._transform.num_layers == timms.num_layers == 3
    assert {op.kwargs["fillcolor"] for op in augment._transform.ops} == {FILL}


def test_the_geometric_set_leaves_colours_alone():
    transform = RandAugment("rand-m9-tgeometric-mstd0.5", 5)._transform
    assert tuple(op.name for op in transform.ops) == GEOMETRIC
    assert {op.magnitude for op in transform.ops} == {9}
    plain = Image.new("RGB", (30, 20), FILL)
    for sample in range(20):
        turned = RandAugment("rand-m9-tgeometric", 5)(plain, epoch=0, sample=sample)
        assert turned.tobytes() == plain.tobytes()


def test_a_square_picture_is_turned_in_all_eight_ways_and_another_one_keeps_its_size():
    square = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    turns = changes("turns", 5)
    assert augment_fault("turns") is None
    found = {turns(Image.fromarray(square), epoch=0, sample=sample).tobytes() for sample in range(100)}
    turned = [np.rot90(square, quarters) for quarters in range(4)]
    assert found == {np.ascontiguousarray(way).tobytes() for one in turned for way in (one, one[:, ::-1])}
    wide = {(one.size, one.tobytes()) for one in (turns(picture(), epoch=0, sample=sample) for sample in range(50))}
    assert {size for size, _ in wide} == {(30, 20)}
    assert len(wide) == 4


def test_a_picture_is_moved_by_at_most_a_sixteenth_of_its_sides_and_its_edge_goes_on():
    given = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    shifts = changes("shifts", 5)
    found = {shifts(Image.fromarray(given), epoch=0, sample=sample).tobytes() for sample in range(300)}
    rows, columns = np.arange(16), np.arange(32)
    expected = {
        given[np.clip(rows + down, 0, 15)][:, np.clip(columns + across, 0, 31)].tobytes()
        for down in (-1, 0, 1)
        for across in (-2, -1, 0, 1, 2)
    }
    assert found == expected
    assert not shifts.spares([Question(question_id="1", question="What is left of the cup?", answer="a plate")])


def test_turned_pictures_are_moved_after_it_and_spared_where_turning_would_tell():
    both = changes("turns+shifts", 5)
    for sample in range(20):
        turned = Turns(5)(picture(), epoch=2, sample=sample)
        expected = Shifts(5)(turned, epoch=2, sample=sample)
        assert both(picture(), epoch=2, sample=sample).tobytes() == expected.tobytes()
    assert both.spares([Question(question_id="1", question="What is left of the cup?", answer="a plate")])
    assert not both.spares([Question(question_id="1", question="What color is the cup?", answer="red")])


@pytest.mark.parametrize("kind", [Turns, Shifts])
def test_a_turn_and_a_shift_depend_on_seed_epoch_and_sample_alone(kind: type[Turns | Shifts]):
    ways = [pixels(kind(5), epoch=epoch, sample=sample) for epoch in range(6) for sample in range(6)]
    assert ways == [pixels(pickle.loads(pickle.dumps(kind(5))), epoch=e, sample=s) for e in range(6) for s in range(6)]
    assert len(set(ways[:6])) > 1
    assert len(set(ways[::6])) > 1
    assert ways != [pixels(kind(6), epoch=epoch, sample=sample) for epoch in range(6) for sample in range(6)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Is the cup on top of the box?", True),
        ("What is under the table?", True),
        ("Which one is HIGHER?", True),
        ("Is a man standing there?", True),
        ("What shape is in the image?", False),
        ("Is there not a yellow onion?", False),
    ],
)
def test_words_of_height_leave_a_picture_as_it_stands(text: str, expected: bool):
    items = [Question(question_id="1", question=text, answer="yes")]
    assert tells_heights(items) == Turns(1).spares(items) == expected
    assert not RandAugment(CONFIG, 1).spares(items)


@pytest.mark.parametrize(
    "config",
    [
        "",
        "turn",
        "turns+",
        "shifts+shifts",
        "turns+rand-m9",
        "rand9",
        "augmix-m3",
        "original",
        "rand-",
        "rand-foo",
        "rand-m",
        "rand-m9-m8",
        "rand-p2",
        "rand-tfoo",
        "rand-n0",
    ],
)
def test_a_string_that_timm_would_read_over_is_a_fault(config):
    assert "expected rand and sections, each once, such as rand-m9-mstd0.5" in augment_fault(config)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is on the left side?", True),
        ("Is it the LEFTMOST one?", True),
        ("the right-hand corner", True),
        ("facing rightwards", True),
        ("Which is the lefthanded man?", True),
        ("Is the sky bright?", False),
        ("an upright piano", False),
        ("a cleft rock", False),
        ("What color is the car?", False),
    ],
)
def test_a_text_that_tells_sides_is_found(text, expected):
    assert tells_sides([Statement(statement_id="1", statement=text)]) is expected


def test_an_answer_tells_sides_too():
    assert tells_sides([Question(question_id="1", question="Which side?", answer="left")])
    assert not tells_sides([Question(question_id="1", question="Which side?", answer="top")])
