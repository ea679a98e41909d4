"""Annotations and photographs as GQA has them, synthesised: its fields and sizes, with made-up contents."""

import io
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from shards.build.columns import make_columns
from shards.build.output_directory import claimed, publish, staging_in
from shards.build.tally import summarise, tally
from shards.build.tar_writer import EncodedImage, Sample, TarShards
from shards.format.columns import COLUMNS_NAME
from shards.format.images import Decoded, shrink
from shards.format.index import SplitIndex
from shards.format.records import Groups, ImageSample, Question, Types, encode_sample

QUESTIONS_PER_IMAGE = 193
"""Of GQA's train_all; of its balanced questions there are 13."""
COLORS = ("red", "green", "blue", "white", "black", "brown", "silver", "yellow")
NAMES = ("girl", "fire hydrant", "refrigerator", "table", "airplane", "backpack", "traffic light", "man")
_PHOTO = (640, 480)
_PHOTOS = 16
"""Distinct ones: to decode the same bytes again is no cheaper."""
_MADE_UP = 4000
"""Words beside those above: as in GQA most questions stand there once."""


def synthesise(path: Path, size: int, seed: int = 0) -> int:
    """Write a question file of about `size` bytes, its images in no order, and return the number of questions."""
    rng = random.Random(seed)
    number, written, image = seed * 100_000_000, 0, seed
    first = number
    with path.open("w", encoding="utf-8") as file:
        file.write("{")
        while written < size:
            # A step that shares no factor with the range visits every image id once.
            image = (image + 7_919_191) % 100_000_000
            texts = []
            for _ in range(QUESTIONS_PER_IMAGE):
                texts.append(f'"{number:09d}": {json.dumps(record(rng, str(image), number))}')
                number += 1
            block = ", ".join(texts)
            written += file.write(block if written == 0 else ", " + block)
        file.write("}")
    return number - first


def record(rng: random.Random, image_id: str, number: int) -> dict:
    """One question with the fields of a train_all record, about a kilobyte of JSON."""
    name, other, color = rng.choice(NAMES), rng.choice(NAMES), rng.choice(COLORS)
    first, second = rng.randrange(10**6, 10**7), rng.randrange(10**6, 10**7)
    semantic = [
        {"operation": "select", "dependencies": [], "argument": f"{other} ({second})"},
        {"operation": "relate", "dependencies": [0], "argument": f"{name},to the left of,s ({first})"},
        {"operation": "filter color", "dependencies": [1], "argument": color},
        {
            "operation": "choose rel",
            "dependencies": [2],
            "argument": f"{name},to the left of|to the right of,s ({first})",
        },
    ]
    return {
        "semantic": semantic,
        "entailed": [f"{number + step:09d}" for step in range(1, rng.randrange(8))],
        "equivalent": [f"{number:09d}"],
        "question": f"Is the {color} {name} to the left or to the right of the {other} that is not large?",
        "imageId": image_id,
        "isBalanced": number % 13 == 0,
        "groups": {"global": None, "local": f"13-{other}_{name}"},
        "answer": rng.choice(("left", "right")),
        "semanticStr": "->".join(f"{step['operation']}: {step['argument']}" for step in semantic),
        "annotations": {
            "answer": {},
            "question": {"3:5": str(first), "14": str(second)},
            "fullAnswer": {"2": str(first)},
        },
        "types": {"detailed": "relChooser", "semantic": "rel", "structural": "choose"},
        "fullAnswer": f"The {name} is to the left of the {other}.",
    }


def write_split(directory: Path, *, images: int, questions_per_image: int, resize: int | None, seed: int = 0) -> None:
    """Shards of photographs of 640 x 480 with questions of GQA's length, as a build writes them."""
    rng, photos = random.Random(seed), _photos(seed, resize)
    words = ["".join(rng.choices("abcdefghijklmnoprstuvwy", k=6)) for _ in range(_MADE_UP)]
    kinds, number = tally([]), 0
    with claimed(directory), staging_in(directory) as staging:
        tars = TarShards(staging, 64 << 20)
        for image in range(images):
            asked = [_question(rng, words, number + place) for place in range(questions_per_image)]
            number += len(asked)
            kinds.update(tally(asked))
            packed = ImageSample(image_id=f"{image:09d}", width=_PHOTO[0], height=_PHOTO[1], questions=tuple(asked))
            picture = EncodedImage(packed.image_id, "jpg", photos[image % len(photos)])
            tars.add(Sample(packed.image_id, (picture,), encode_sample(packed), len(asked)))
        tars.close()
        summary = summarise(kinds)
        index = SplitIndex(
            reader="gqa",
            sources=[],
            options={"resize": resize},
            counts={"images": images, "questions": summary.questions, "answered": summary.answered},
            answers=summary.answers,
            groups=summary.groups,
            types=summary.types,
            shards=tars.shards,
        )
        make_columns(staging / COLUMNS_NAME, staging, index)
        publish(directory, index)


def _question(rng: random.Random, words: list[str], number: int) -> Question:
    name, other, color = rng.choice(words), rng.choice(NAMES), rng.choice(COLORS)
    return Question(
        question_id=f"{number:09d}",
        question=f"What color is the {name} to the left of the {rng.choice(words)} that is near the {other}?",
        answer=color,
        full_answer=f"The {name} is {color}.",
        types=Types(structural="query", semantic="attr", detailed="directWhich"),
        groups=Groups(global_="color", local=f"06-{name}_color"),
        steps=3,
        entailed=tuple(f"{number + step:09d}" for step in range(1, rng.randrange(1, 8))),
        equivalent=(f"{number:09d}",),
    )


def _photos(seed: int, resize: int | None) -> list[bytes]:
    """As large as photographs of that size are: coarse shapes under grain."""
    rng, found = np.random.default_rng(seed), []
    width, height = _PHOTO
    for _ in range(_PHOTOS):
        coarse, grain = (
            np.asarray(
                Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).resize(
                    _PHOTO, Image.Resampling.BICUBIC
                )
            ).astype(np.int16)
            for size in ((12, 16), (height // 3, width // 3))
        )
        image = Image.fromarray(np.clip(coarse + (grain - 128) // 3, 0, 255).astype(np.uint8))
        smaller = None if resize is None else shrink(Decoded(image, "jpg"), resize)
        if smaller is None:
            target = io.BytesIO()
            image.save(target, "JPEG", quality=90)
            smaller = target.getvalue()
        found.append(smaller)
    return found
