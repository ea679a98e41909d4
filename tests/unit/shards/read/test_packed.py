"""Micro-batches packed by tokens, as the loader makes them."""

import pickle

import numpy as np
import pytest
import torch

from benchmarks.identity_data import texts_of
from shards.plan import Order, Share
from shards.read.lengths import longest_questions, tokens_of
from shards.read.loader import Loader
from shards.read.micro_batch import MicroBatch
from shards.read.micro_batches import Split, TrainingBatches, training_keys
from tests.corpora import build_corpus
from tests.rows import LetterCodec, leaves

TEXTS = texts_of(LetterCodec(), LetterCodec(), ("answer", "question"))
LIMIT = 120


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    directory, _ = build_corpus(tmp_path_factory.mktemp("packed"), num_images=14, questions_per_image=9)
    order = Order(seed=5, questions_per_visit=4, visits_per_step=8, lanes=4, shuffle_shards=2)
    return Split(str(directory), order)


def packed(split: Split, *, rank: int = 0, world_size: int = 1, limit: int = LIMIT) -> TrainingBatches:
    share = Share(rank=rank, world_size=world_size, micro_visits=1, micro_tokens=limit)
    return TrainingBatches(split, TEXTS, 16, share, longest=longest_questions(split, most=14))


def batches(dataset: TrainingBatches, workers: int = 0) -> list[MicroBatch]:
    keys = training_keys(0, 0, dataset.split.steps_per_epoch, dataset.micro_batches_in)
    return list(Loader(dataset, workers=workers, pin_memory=False).batches(keys))


def test_the_longest_question_of_each_image_is_that_of_its_texts(split: Split):
    found = longest_questions(split, most=1000)
    for image in range(split.index.num_images):
        texts = [text for item in split.reader.sample(image).items for text in item.texts]
        assert found[image] == max(map(tokens_of, texts))
    assert (longest_questions(split, most=5) <= 5).all()
    parts = [longest_questions(split, most=1000, rank=rank, world_size=3) for rank in range(3)]
    assert (np.stack(parts) > 0).sum(axis=0).max() == 1, "no image is read twice"
    assert (np.max(parts, axis=0) == found).all()
    assert tokens_of("Is the red ball, on the left?") == 9 + 2


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_question_of_an_epoch_once_over_all_ranks(split: Split, world_size: int):
    total = sum(
        item.num_items
        for rank in range(world_size)
        for item in batches(packed(split, rank=rank, world_size=world_size))
    )
    assert total == int(split.visits.num_questions.sum())


def test_losses_are_divided_by_the_same_number_however_many_micro_batches_there_are(split: Split):
    many, few = packed(split, limit=1), packed(split, limit=10**6)
    assert many.micro_batches_in(0, 0) > few.micro_batches_in(0, 0) == 1
    assert many.accumulation == few.accumulation == 8
    scales = [dataset.prepare(0, 0, 0).batch.loss_scale for dataset in (many, few)]
    assert torch.equal(*scales)


def test_workers_change_nothing(split: Split):
    for one, other in zip(batches(packed(split)), batches(packed(split), workers=2), strict=True):
        for (name, left), (_, right) in zip(leaves(one.batch), leaves(other.batch), strict=True):
            assert torch.equal(left, right) if torch.is_tensor(left) else left == right, name


def test_a_copy_for_a_worker_plans_the_same(split: Split):
    dataset = packed(split)
    copy = pickle.loads(pickle.dumps(dataset.packed))
    for one, other in zip(dataset.packed.micro_batches(1, 0), copy.micro_batches(1, 0), strict=True):
        assert np.array_equal(one, other)


def test_packing_never_pads_to_more_where_two_halves_are_alike(split: Split):
    steps = [packed(split).packed.padded_tokens(0, step) for step in range(split.steps_per_epoch)]
    assert sum(found for found, _ in steps) <= sum(plain for _, plain in steps)
