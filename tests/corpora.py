"""Small corpora in GQA's file format, written by code: pictures of two shapes and what can be asked of them."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from shards.build.writer import build_shards
from shards.format.index import SplitIndex

COLORS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (40, 60, 210), "yellow": (230, 210, 40)}
SHAPES = ("square", "circle", "triangle")
SIDES = ("left", "right")
FORMATS = {"jpg": {"quality": 90}, "png": {}, "webp": {"quality": 90}}
SMALL_SHARD = 20_480


@dataclass(frozen=True)
class Corpus:
    """Where the files of a corpus are."""

    directory: Path
    images: Path
    questions: Path
    scene_graphs: Path
    choices: Path


@dataclass(frozen=True)
class Thing:
    """A shape in a picture; `box` is x, y, width, height in pixels."""

    object_id: str
    shape: str
    color: str
    box: tuple[int, int, int, int]


def write_corpus(
    directory: Path,
    *,
    num_images: int = 12,
    questions_per_image: int = 5,
    ragged: bool = True,
    seed: int = 0,
    size: tuple[int, int] = (48, 40),
    formats: tuple[str, ...] = ("jpg", "png", "webp"),
) -> Corpus:
    """Write images, question file, scene graphs and choices.

    Args:
        directory: made if it is missing.
        num_images: pictures; their ids are strings of digits, some with a leading zero.
        questions_per_image: the most that is asked of a picture, at most 20.
        ragged: ask 1 .. questions_per_image, by turns; else exactly questions_per_image.
        seed: the same seed writes the same files.
        size: width and height of the pictures.
        formats: image formats, by turns.
    """
    corpus = Corpus(
        directory,
        directory / "images",
        directory / "questions.json",
        directory / "scene_graphs.json",
        directory / "choices.json",
    )
    corpus.images.mkdir(parents=True, exist_ok=True)
    questions: dict[str, Any] = {}
    scenes: dict[str, Any] = {}
    for number in range(num_images):
        rng = random.Random(f"{seed}/{number}")
        image_id = f"{'0' if number % 3 == 0 else ''}{1000 + number}"
        things = _things(rng, number, size)
        extension = formats[number % len(formats)]
        _picture(things, size).save(corpus.images / f"{image_id}.{extension}", **FORMATS[extension])
        scenes[image_id] = _scene(things, size)
        count = 1 + number % questions_per_image if ragged else questions_per_image
        records = list(_questions(things, rng))
        rng.shuffle(records)
        for position, record in enumerate(records[:count]):
            questions[f"0{number:04d}{position:02d}"] = {"imageId": image_id, **record}
    _tie(questions)
    choices = {name: _choices(record) for name, record in questions.items()}
    for path, content in ((corpus.questions, questions), (corpus.scene_graphs, scenes), (corpus.choices, choices)):
        path.write_text(json.dumps(content))
    return corpus


def build_corpus(directory: Path, *, shard_bytes: int = SMALL_SHARD, **corpus: Any) -> tuple[Path, SplitIndex]:
    """Write a corpus and build its shards, several of them.

    Args:
        directory: gets `corpus/` and `shards/`.
        shard_bytes: largest size of a tar; the smallest tar there is has 10,240 bytes.
        corpus: arguments of `write_corpus`.

    Returns:
        The directory of shards and its index.
    """
    written = write_corpus(directory / "corpus", **corpus)
    index = build_shards(
        format="gqa",
        questions=[written.questions],
        images=written.images,
        out=directory / "shards",
        scene_graphs=written.scene_graphs,
        shard_bytes=shard_bytes,
    )
    return directory / "shards", index


def _things(rng: random.Random, number: int, size: tuple[int, int]) -> tuple[Thing, Thing]:
    shapes = rng.sample(SHAPES, 2)
    colors = [rng.choice(list(COLORS)) for _ in shapes]
    side = min(size) // 3
    lefts = [size[0] // 12, size[0] - side - size[0] // 12]
    boxes = [(left, rng.randrange(1, size[1] - side), side, side) for left in lefts]
    one, other = (
        Thing(f"{number}0{place}", shape, color, box)
        for place, (shape, color, box) in enumerate(zip(shapes, colors, boxes, strict=True))
    )
    return one, other


def _picture(things: tuple[Thing, Thing], size: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", size, (245, 245, 245))
    draw = ImageDraw.Draw(picture)
    for thing in things:
        x, y, w, h = thing.box
        if thing.shape == "square":
            draw.rectangle((x, y, x + w, y + h), fill=COLORS[thing.color])
        elif thing.shape == "circle":
            draw.ellipse((x, y, x + w, y + h), fill=COLORS[thing.color])
        else:
            draw.polygon(((x, y + h), (x + w // 2, y), (x + w, y + h)), fill=COLORS[thing.color])
    return picture


def _scene(things: tuple[Thing, Thing], size: tuple[int, int]) -> dict[str, Any]:
    objects = {
        thing.object_id: {
            "name": thing.shape,
            **dict(zip("xywh", thing.box, strict=True)),
            "attributes": [thing.color],
            "relations": [{"name": f"to the {SIDES[place]} of", "object": things[1 - place].object_id}],
        }
        for place, thing in enumerate(things)
    }
    return {"width": size[0], "height": size[1], "objects": objects}


def _questions(things: tuple[Thing, Thing], rng: random.Random) -> Iterator[dict[str, Any]]:
    """More than 20 records without imageId, of all structural types."""
    for place, thing in enumerate(things):
        other, side = things[1 - place], SIDES[place]
        select = ("select", f"{thing.shape} ({thing.object_id})")
        at = {"3": thing.object_id}
        yield _record(
            f"What color is the {thing.shape}?", thing.color, "query attr", "color", [select, ("query", "color")], at
        )
        yield _record(
            f"What shape is on the {side}?",
            thing.shape,
            "query obj",
            "shape",
            [("select", "shape"), ("query", "name")],
            at,
        )
        yield _record(
            f"Is the {thing.shape} on the left or on the right of the image?",
            side,
            "choose attr",
            None,
            [select, ("choose hposition", "left|right")],
            {"2": thing.object_id},
        )
        relation = f"{thing.shape},to the left of|to the right of,s ({thing.object_id})"
        yield _record(
            f"Is the {thing.shape} to the left or to the right of the {other.shape}?",
            side,
            "choose rel",
            None,
            [("select", f"{other.shape} ({other.object_id})"), ("choose rel", relation)],
            {"2": thing.object_id, "10": other.object_id},
        )
        for color in COLORS:
            verify = [select, ("verify color", color)]
            answer = "yes" if color == thing.color else "no"
            yield _record(f"Is the {thing.shape} {color}?", answer, "verify attr", None, verify, {"2": thing.object_id})
        color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
        found = any((one.color, one.shape) == (color, shape) for one in things)
        yield _record(
            f"Do you see a {color} {shape} or a {thing.shape}?",
            "yes",
            "logical obj",
            None,
            [("select", shape), ("filter color", color), ("exist", "?"), select, ("exist", "?"), ("or", "")],
            {"8": thing.object_id},
        )
        yield _record(
            f"Do you see both a {color} {shape} and a {thing.shape}?",
            "yes" if found else "no",
            "logical obj",
            None,
            [("select", shape), ("filter color", color), ("exist", "?"), select, ("exist", "?"), ("and", "")],
            {"9": thing.object_id},
        )
    one, other = things
    yield _record(
        f"Do the {one.shape} and the {other.shape} have the same color?",
        "yes" if one.color == other.color else "no",
        "compare attr",
        None,
        [
            ("select", f"{one.shape} ({one.object_id})"),
            ("select", f"{other.shape} ({other.object_id})"),
            ("same color", ""),
        ],
        {"2": one.object_id, "5": other.object_id},
    )


def _record(
    question: str, answer: str, kind: str, group: str | None, program: list[tuple[str, str]], at: dict[str, str]
) -> dict[str, Any]:
    structural, semantic = kind.split()
    return {
        "question": question,
        "answer": answer,
        "fullAnswer": f"The answer is {answer}.",
        "isBalanced": not question.startswith("Do you see both"),
        "groups": {"global": group, "local": f"{structural}-{semantic}"},
        "types": {"structural": structural, "semantic": semantic, "detailed": f"{structural}{semantic.title()}"},
        "semantic": [{"operation": name, "argument": argument, "dependencies": []} for name, argument in program],
        "semanticStr": "->".join(f"{name}: {argument}" for name, argument in program),
        "annotations": {"question": at, "answer": {}, "fullAnswer": {}},
        "entailed": [],
        "equivalent": [],
    }


def _tie(questions: dict[str, Any]) -> None:
    """A question about a color entails whether the shape has that color, as in GQA."""
    by_image: dict[tuple[str, str], str] = {(r["imageId"], r["question"]): name for name, r in questions.items()}
    for name, record in questions.items():
        record["equivalent"] = [name]
        if record["question"].startswith("What color is the "):
            shape = record["question"].removeprefix("What color is the ").removesuffix("?")
            entailed = by_image.get((record["imageId"], f"Is the {shape} {record['answer']}?"))
            record["entailed"] = [entailed] if entailed else []


def _choices(record: dict[str, Any]) -> dict[str, list[str]]:
    tables = {"color": list(COLORS), "shape": list(SHAPES)}
    valid = tables.get(record["groups"]["global"])
    if valid is None:
        valid = ["left", "right"] if record["types"]["structural"] == "choose" else ["yes", "no"]
    return {"valid": valid, "plausible": [record["answer"]]}
