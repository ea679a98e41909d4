"""Measures what one core spends on a visit, by processor time: what else the machine does is no part of it."""

import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from model.towers.tokenizer import BlipCodec, build_tokenizer
from shards.format.columns import COLUMNS_NAME
from shards.plan import Order
from shards.read.collate import Layout
from shards.read.collation import BlockCollation
from shards.read.micro_batches import Split, Texts, TrainingBatches, alone
from shards.tasks import TASKS
from shards.tasks.seam import Wanted
from trainer.bench.gqa_chunk import write_split
from trainer.bench.rounds import Seconds, time_rounds

BARE, QUESTIONS, RECIPE, LISTED = "bare", "questions", "recipe", "no columns"
DESCRIPTIONS = {
    BARE: "its image decoded and resized from memory, and nothing else",
    QUESTIONS: "its image, and its questions with their answers",
    RECIPE: "as the recipes have it: matched with negatives of both kinds too",
    LISTED: "the same from shards without columns, as version 1 had them",
}
_MICRO_VISITS = 8
_SAMPLES_OF_WORDS = 40


@dataclass(frozen=True, kw_only=True)
class LoaderMeasurement:
    """What was measured at one number of questions an image."""

    questions_per_image: int
    questions_per_visit: float
    jpeg_bytes: float
    rounds: list[Seconds]
    """Of a visit."""

    def milliseconds(self, name: str) -> tuple[float, float, float]:
        """Of a visit: the lowest, the median and the highest over rounds."""
        found = sorted(1000 * seconds[name] for seconds in self.rounds)
        return found[0], median(found), found[-1]

    def share_of_decoding(self, name: str) -> float:
        """How much of a visit's time is its image's: the median over rounds of the ratio in each."""
        return median(seconds[BARE] / seconds[name] for seconds in self.rounds)

    def as_json(self) -> dict[str, Any]:
        """Everything, with the medians."""
        return {
            "questions_per_image": self.questions_per_image,
            "questions_per_visit": self.questions_per_visit,
            "jpeg_bytes": self.jpeg_bytes,
            "milliseconds_per_visit": {name: self.milliseconds(name)[1] for name in DESCRIPTIONS},
            "share_of_decoding": {name: self.share_of_decoding(name) for name in DESCRIPTIONS if name != BARE},
            "milliseconds_by_round": [{name: 1000 * s for name, s in seconds.items()} for seconds in self.rounds],
        }


def measure_loader(
    directory: Path,
    *,
    images: int,
    questions_per_image: int,
    resize: int | None,
    image_size: int,
    rounds: int,
    report: Callable[[str], None] = lambda _: None,
) -> LoaderMeasurement:
    """Time visits of synthesised shards.

    Args:
        directory: where they are written.
        resize: short side of the packed images; None packs them as they are.
        image_size: side of the squares that a model is shown.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as in a loader's worker
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    report(f"writing {images} images with {questions_per_image} questions each")
    write_split(directory, images=images, questions_per_image=questions_per_image, resize=resize)
    order = Order(seed=1, questions_per_visit=16, visits_per_step=_MICRO_VISITS, lanes=_MICRO_VISITS, shuffle_shards=8)
    split = Split(str(directory), order)
    codec = _codec(split)
    both = ("answer", "question")
    jpegs = [split.reader.images(image)[0] for image in range(min(images, 64))]
    ways: dict[str, Iterator[None]] = {
        BARE: _decoding(jpegs, image_size),
        QUESTIONS: _preparing(split, codec, image_size, ("ask",), ()),
        RECIPE: _preparing(split, codec, image_size, ("ask", "match"), both),
    }
    (directory / COLUMNS_NAME).unlink()  # what is mapped stays mapped
    ways[LISTED] = _preparing(Split(str(directory), order), codec, image_size, ("ask", "match"), both)
    try:
        steps = {name: way.__next__ for name, way in ways.items()}
        for step in steps.values():
            step()
        found = time_rounds(steps, rounds=rounds, seconds_at_least=1.0, clock=time.process_time, progress=report)
    finally:
        torch.set_num_threads(threads)
    return LoaderMeasurement(
        questions_per_image=questions_per_image,
        questions_per_visit=float(split.visits.num_questions.sum() / len(split.visits)),
        jpeg_bytes=sum(map(len, jpegs)) / len(jpegs),
        rounds=[{name: seconds / _MICRO_VISITS for name, seconds in one.items()} for one in found],
    )


def _decoding(jpegs: list[bytes], size: int) -> Iterator[None]:
    while True:
        for start in range(0, len(jpegs), _MICRO_VISITS):
            for data in jpegs[start : start + _MICRO_VISITS]:
                image = Image.open(io.BytesIO(data)).convert("RGB")
                if image.size != (size, size):
                    image = image.resize((size, size), Image.Resampling.BICUBIC)
                torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
            yield


def _preparing(
    split: Split, codec: BlipCodec, size: int, blocks: tuple[str, ...], negatives: tuple[str, ...]
) -> Iterator[None]:
    known = TASKS["gqa"].blocks
    layouts = {name: Layout(block=known[name], codec=codec, targets=name == "ask") for name in blocks}
    wanted = Wanted(blocks=frozenset(layouts), negatives=negatives)
    texts = Texts(task="gqa", collation=BlockCollation(layouts), wanted=wanted)
    batches = TrainingBatches(split, texts, size, alone(_MICRO_VISITS))
    while True:
        for step in range(split.steps_per_epoch - 1):  # the last one may be padded
            batches.prepare(0, step, 0)
            yield


def _codec(split: Split) -> BlipCodec:
    samples = range(min(split.index.num_images, _SAMPLES_OF_WORDS))
    texts = [text for sample in samples for item in split.reader.sample(sample).items for text in item.texts]
    tokenizer = build_tokenizer(texts, vocab_size=30_522)
    pad, start, end, first = tokenizer.convert_tokens_to_ids(["[PAD]", "[DEC]", "[SEP]", "[ENC]"])
    return BlipCodec(
        tokenizer=tokenizer,
        start_id=start,
        end_id=end,
        pad_id=pad,
        max_question_tokens=35,
        max_answer_tokens=10,
        first_id=first,
    )
