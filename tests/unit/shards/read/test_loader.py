"""The loader: order, padding, decoding and faults. Workers only change the speed."""

import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.identity_data import texts_of
from shards.errors import DataError
from shards.format.index import read_index
from shards.plan import Order, Share
from shards.read.augment import RandAugment
from shards.read.collate import IGNORED_LABEL
from shards.read.eyes import square_pixels
from shards.read.loader import Loader
from shards.read.micro_batch import MicroBatch
from shards.read.micro_batches import EvaluationBatches, Split, TrainingBatches, alone, training_keys
from tests.corpora import build_corpus
from tests.rows import LetterCodec, leaves

SIZE = 16


TEXTS = texts_of(LetterCodec(), LetterCodec(), ("answer", "question"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory, _ = build_corpus(tmp_path_factory.mktemp("loader"), num_images=14, questions_per_image=9)
    return directory


def open_split(shards: Path, *, visits: int = 4, lanes: int = 2) -> Split:
    order = Order(seed=5, questions_per_visit=4, visits_per_step=visits, lanes=lanes, shuffle_shards=2)
    return Split(str(shards), order)


def all_batches(dataset: TrainingBatches, epoch: int, workers: int = 0) -> list[MicroBatch]:
    keys = training_keys(epoch, 0, dataset.split.steps_per_epoch, dataset.accumulation)
    return list(Loader(dataset, workers=workers, pin_memory=False).batches(keys))


def assert_same(one: Sequence[MicroBatch], other: Sequence[MicroBatch]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left[1:] == right[1:]
        one_leaves, other_leaves = (list(leaves(item.batch)) for item in (left, right))
        assert [name for name, _ in one_leaves] == [name for name, _ in other_leaves]
        for (name, a), (_, b) in zip(one_leaves, other_leaves, strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, name


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(shards: Path, workers: int) -> None:
    dataset = TrainingBatches(open_split(shards), TEXTS, SIZE, alone(2))
    assert_same(all_batches(dataset, 1, workers), all_batches(dataset, 1))


def test_augmented_pictures_are_the_same_for_any_number_of_workers_and_ranks_and_after_a_seek(shards: Path) -> None:
    def batches(workers: int, **share: int) -> list[MicroBatch]:
        sizes = {"rank": 0, "world_size": 1, "micro_visits": 2} | share
        augment = RandAugment("rand-m9-mstd0.5", 5)
        dataset = TrainingBatches(open_split(shards), TEXTS, SIZE, Share(**sizes), augment=augment)
        return all_batches(dataset, 1, workers)

    def pictures(found: list[MicroBatch]) -> dict[tuple[int, bytes], bytes]:
        return {
            (sample, pixels.numpy().tobytes())
            for item in found
            for sample, pixels in zip(item.samples, item.batch.shown, strict=False)
        }

    alone_ = batches(0)
    assert_same(batches(2), alone_)
    ranks = [pictures(batches(0, rank=rank, world_size=2, micro_visits=1)) for rank in range(2)]
    assert ranks[0] | ranks[1] == pictures(alone_)
    plain = all_batches(TrainingBatches(open_split(shards), TEXTS, SIZE, alone(2)), 1)
    changed = pictures(alone_) - pictures(plain)
    assert changed
    dataset = TrainingBatches(open_split(shards), TEXTS, SIZE, alone(2), augment=RandAugment("rand-m9-mstd0.5", 5))
    steps = dataset.split.steps_per_epoch
    later = list(Loader(dataset, workers=0, pin_memory=False).batches(training_keys(1, 2, steps, dataset.accumulation)))
    assert_same(later, alone_[2 * dataset.accumulation :])


def test_pictures_with_questions_about_left_and_right_are_left_alone(shards: Path, monkeypatch) -> None:
    plain = all_batches(TrainingBatches(open_split(shards), TEXTS, SIZE, alone(2)), 1)
    monkeypatch.setattr("shards.read.augment.tells_sides", lambda _: True)
    augment = RandAugment("rand-m9-mstd0.5", 5)
    found = all_batches(TrainingBatches(open_split(shards), TEXTS, SIZE, alone(2), augment=augment), 1)
    assert_same(found, plain)


def test_persistent_workers_take_up_another_epoch_and_a_seek(shards: Path) -> None:
    dataset = TrainingBatches(open_split(shards), TEXTS, SIZE, alone(2))
    loader = Loader(dataset, workers=2, pin_memory=False)
    steps = dataset.split.steps_per_epoch
    first = list(loader.batches(training_keys(0, 0, steps, dataset.accumulation)))
    resumed = list(loader.batches(training_keys(1, 2, steps, dataset.accumulation)))
    assert_same(first, all_batches(dataset, 0))
    assert_same(resumed, all_batches(dataset, 1)[2 * dataset.accumulation :])


def test_workers_outlive_the_signals_that_a_whole_process_group_gets(shards: Path) -> None:
    dataset = TrainingBatches(open_split(shards), TEXTS, SIZE, alone(1))
    before = set(multiprocessing.active_children())
    batches = Loader(dataset, workers=1, pin_memory=False).batches(
        training_keys(0, 0, dataset.split.steps_per_epoch, dataset.accumulation)
    )
    first = next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        for process in (worker.pid, parent_of(worker.pid)):
            os.kill(process, number)
    assert_same([first, *batches], all_batches(dataset, 0))


def test_workers_are_not_forked_from_the_process_that_trains(shards: Path) -> None:
    """Its threads may hold locks in the moment of the fork, which a child would wait for for ever."""
    dataset = TrainingBatches(open_split(shards), TEXTS, SIZE, alone(1))
    before = set(multiprocessing.active_children())
    batches = Loader(dataset, workers=2, pin_memory=False).batches(training_keys(0, 0, 1, dataset.accumulation))
    next(batches)
    parents = {parent_of(worker.pid) for worker in set(multiprocessing.active_children()) - before}
    assert len(parents) == 1
    (server,) = parents
    assert parent_of(server) == os.getpid()
    assert len(os.listdir(f"/proc/{server}/task")) == 1, "the server has one thread"


def parent_of(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))


def test_every_rank_together_gives_the_questions_of_one_process(shards: Path) -> None:
    def rows_over(world_size: int) -> list[tuple[int, ...]]:
        rows = []
        for rank in range(world_size):
            share = Share(rank=rank, world_size=world_size, micro_visits=1)
            for item in all_batches(TrainingBatches(open_split(shards), TEXTS, SIZE, share), 0):
                ask = item.batch.blocks["ask"]
                real = ask.targets.weight > 0
                rows += [tuple(row[row > 0].tolist()) for row in ask.ids[real]]
        return sorted(rows)

    assert rows_over(2) == rows_over(1)
    assert len(rows_over(1)) == int(open_split(shards).visits.num_questions.sum())


def test_loss_scales_average_to_one_over_the_questions_of_the_step(shards: Path) -> None:
    for world_size, micro in ((1, 4), (1, 1), (2, 2), (2, 1)):
        datasets = [
            TrainingBatches(open_split(shards), TEXTS, SIZE, Share(rank=r, world_size=world_size, micro_visits=micro))
            for r in range(world_size)
        ]
        for step in range(datasets[0].split.steps_per_epoch):
            parts = [d[(0, step, m)] for d in datasets for m in range(d.accumulation)]
            questions = sum(part.num_items for part in parts)
            mean = sum(float(p.batch.loss_scale) * p.num_items for p in parts) / len(parts)
            assert mean == pytest.approx(1.0)
            assert questions == datasets[0].split.epoch(0).questions_in_step(step)


def test_an_empty_micro_batch_has_one_black_image_and_rows_of_weight_zero(shards: Path) -> None:
    split = open_split(shards, visits=8, lanes=2)
    dataset = TrainingBatches(split, TEXTS, SIZE, alone(1))
    batches = all_batches(dataset, 0)
    empty = [item for item in batches if item.num_items == 0]
    assert empty, "this corpus must leave padding in its last step"
    for item in empty:
        assert item.batch.shown.shape == (1, 3, SIZE, SIZE)
        assert not item.batch.shown.any()
        ask, match = item.batch.blocks["ask"], item.batch.blocks["match"]
        assert (len(ask.ids), len(match.ids)) == (1, 1)
        assert ask.targets.weight.tolist() == [0.0]
        assert match.weight.tolist() == [0.0]
    assert sum(item.num_items for item in batches) == int(split.visits.num_questions.sum())


def test_rows_are_grouped_by_image_padded_to_eight_and_aligned(shards: Path) -> None:
    for item in all_batches(TrainingBatches(open_split(shards), TEXTS, SIZE, alone(4)), 0):
        blocks = item.batch.blocks
        assert list(blocks) == ["ask", "match"]
        for block in blocks.values():
            assert block.tokens == block.mask.sum()
            assert block.ids.shape[1] % 8 == 0
            assert block.ids.shape[1] - int(block.mask.sum(1).max()) < 8
            assert torch.equal(block.mask, block.ids != 0)
            assert (block.image.diff() >= 0).all()
            assert block.rows_per_image == int(block.image.bincount().max())
            assert block.rows_per_item == int(block.item.bincount().max())
        assert blocks["match"].targets is None
        targets = blocks["ask"].targets
        assert targets.one_per_row
        assert targets.row.tolist() == list(range(len(blocks["ask"].ids)))
        tokens = targets.labels != IGNORED_LABEL
        ends = tokens.sum(1) - 1
        assert (targets.ids[:, 0] == LetterCodec.start_id).all()
        assert (targets.labels.gather(1, ends[:, None]) == LetterCodec.end_id).all()
        assert torch.equal(targets.labels[:, :-1][tokens[:, 1:]], targets.ids[:, 1:][tokens[:, 1:]])


def test_a_question_and_its_negatives_weigh_at_most_one_and_missing_ones_are_counted(shards: Path) -> None:
    for item in all_batches(TrainingBatches(open_split(shards), TEXTS, SIZE, alone(4)), 0):
        match = item.batch.blocks["match"]
        own = match.labels == 1
        assert int(own.sum()) == item.num_items
        assert (match.weight[own] == 0.5).all()
        assert (match.weight[~own] == 0.25).all()
        assert int((~own).sum()) + item.rows_missing == 2 * item.num_items


def test_evaluation_keeps_the_questions_and_the_negatives_of_epoch_0(shards: Path) -> None:
    split = open_split(shards)
    dataset = EvaluationBatches(split, TEXTS, SIZE, alone(3))
    items = [dataset[key] for key in dataset.all_keys()]
    asked = [question.question_id for item in items for question in item.items]
    expected = [q.question_id for image in range(split.index.num_images) for q in split.reader.sample(image).questions]
    assert asked == expected
    assert all(float(item.batch.loss_scale) == 1.0 for item in items)

    def pairs(batches: Sequence[MicroBatch]) -> list[tuple[int, ...]]:
        matches = [item.batch.blocks["match"] for item in batches]
        return sorted(tuple(row.tolist()) for match in matches for row in match.ids[match.labels == 0])

    trained = all_batches(TrainingBatches(split, TEXTS, SIZE, alone(4)), 0)
    strip = lambda rows: sorted(tuple(t for t in row if t) for row in rows)  # noqa: E731
    assert strip(pairs(items)) == strip(pairs(trained))


def test_an_evaluation_joins_the_visits_of_an_image_and_loses_none(shards: Path) -> None:
    dataset = EvaluationBatches(open_split(shards), TEXTS, SIZE, alone(5))
    items = [dataset[key] for key in dataset.all_keys()]
    assert sum(item.num_visits for item in items) == len(dataset.order.visits) > sum(len(i.batch.shown) for i in items)
    for item in items:
        assert len(set(item.samples)) == len(item.samples) == len(item.batch.shown)
        ask = item.batch.blocks["ask"]
        assert ask.image.tolist() == list(item.item_images)
        assert ask.image.bincount().max() == ask.rows_per_image


def test_an_error_ends_the_process_although_workers_ignore_signals(shards: Path) -> None:
    """Python waits at exit for children that it has sent a SIGTERM."""
    script = f"""
from tests.unit.shards.read.test_loader import SIZE, TEXTS, alone, open_split
from shards.read.loader import Loader
from shards.read.micro_batches import EvaluationBatches
batches = EvaluationBatches(open_split({str(shards)!r}), TEXTS, SIZE, alone(2))
loader = Loader(batches, workers=1, pin_memory=False)
for item in loader.batches(batches.all_keys()):
    raise RuntimeError("in the middle of an epoch")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "in the middle of an epoch" in ended.stderr


def test_a_killed_process_takes_its_workers_with_it_and_nothing_is_said_of_semaphores(shards: Path) -> None:
    script = f"""
import os, signal
from tests.unit.shards.read.test_loader import SIZE, TEXTS, alone, open_split
from shards.read.loader import Loader
from shards.read.micro_batches import EvaluationBatches
batches = EvaluationBatches(open_split({str(shards)!r}), TEXTS, SIZE, alone(2))
loader = Loader(batches, workers=1, pin_memory=False)
for item in loader.batches(batches.all_keys()):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    # Its output is read to the end, which comes when the last process that inherited it is gone.
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGKILL, "")


def test_shuffled_images_show_every_image_once_and_never_the_own_one(shards: Path) -> None:
    split = open_split(shards)
    own = EvaluationBatches(split, TEXTS, SIZE, alone(1))
    other = EvaluationBatches(split, TEXTS, SIZE, alone(1), shuffle_images=True)
    shown = [
        [tuple(dataset[key].batch.shown.flatten().tolist()) for key in dataset.all_keys()] for dataset in (own, other)
    ]
    assert set(shown[0]) == set(shown[1])
    assert [own[key].items for key in own.all_keys()] == [other[key].items for key in own.all_keys()]
    different = [a != b for a, b in zip(*shown, strict=True)]
    assert all(different)


def test_a_single_image_cannot_be_shuffled(shards: Path) -> None:
    split = open_split(shards)
    EvaluationBatches(split, TEXTS, SIZE, alone(1), max_images=2, shuffle_images=True)
    with pytest.raises(DataError, match=r"--images shuffled: only one image .* or --images own") as caught:
        EvaluationBatches(split, TEXTS, SIZE, alone(1), max_images=1, shuffle_images=True)
    assert "\n" not in str(caught.value)


def test_questions_that_were_cut_are_counted(shards: Path) -> None:
    item = TrainingBatches(open_split(shards), TEXTS, SIZE, alone(4))[(0, 0, 0)]
    assert 0 < item.items_cut <= item.num_items
    only_match = texts_of(None, LetterCodec(), ("answer",))
    again = TrainingBatches(open_split(shards), only_match, SIZE, alone(4))[(0, 0, 0)]
    assert again.items_cut == item.items_cut
    assert list(again.batch.blocks) == ["match"]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_images_of_any_mode_become_three_channels(mode: str) -> None:
    image = Image.new("RGB", (40, 20), (10, 20, 30)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.full((20, 40), 3000, dtype=np.uint16))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    pixels = square_pixels(buffer.getvalue(), SIZE, "an image")
    assert pixels.shape == (3, SIZE, SIZE)
    assert pixels.dtype == torch.uint8


def test_an_image_that_lies_on_its_side_is_turned_upright() -> None:
    image = Image.new("RGB", (32, 32), "black")
    image.paste((255, 255, 255), (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    pixels = square_pixels(buffer.getvalue(), SIZE, "an image")
    assert pixels[:, :, SIZE // 2 + 1 :].float().mean() > 200
    assert pixels[:, :, : SIZE // 2 - 1].float().mean() < 50


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("member", "damage", "what"),
    [
        ("image", lambda data: bytes(len(data)), "not a JPEG, PNG or WebP "),
        ("json", lambda data: data.replace(b'"question":"', b'"question":\xff', 1), "damaged annotations "),
        ("json", lambda data: data.replace(b"What", b"W\xffat", 1).replace(b"Is", b"I\xff", 1), "damaged annotations "),
    ],
    ids=["no image", "no JSON", "no UTF-8"],
)
def test_a_damaged_shard_is_named_with_its_image(
    shards: Path, tmp_path: Path, member: str, damage: Callable[[bytes], bytes], what: str, workers: int
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    split = open_split(broken)
    shard = read_index(broken).shards[0]
    at, size = getattr(shard, f"{member}_offsets")[0], getattr(shard, f"{member}_bytes")[0]
    with (broken / shard.name).open("r+b") as file:
        file.seek(at)
        damaged = damage(file.read(size))
        file.seek(at)
        file.write(damaged)
    dataset = TrainingBatches(split, TEXTS, SIZE, alone(4))
    with pytest.raises(DataError, match=rf"{shard.name}: image '{shard.image_ids[0]}': {what}.*verify"):
        all_batches(dataset, 0, workers)


def test_a_shard_that_is_too_short_or_missing_is_named(shards: Path, tmp_path: Path) -> None:
    broken = tmp_path / "short"
    shutil.copytree(shards, broken)
    name = open_split(broken).index.shards[0].name
    (broken / name).write_bytes((broken / name).read_bytes()[:600])
    with pytest.raises(DataError, match=rf"{name}: ends at byte"):
        all_batches(TrainingBatches(open_split(broken), TEXTS, SIZE, alone(4)), 0)
    (broken / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: No such file"):
        all_batches(TrainingBatches(open_split(broken), TEXTS, SIZE, alone(4)), 0)
