"""Every task's official files, small and written by code: pictures of a colored square, and what is said about them."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from shards.format.regions import Regions
from tests.corpora import COLORS, SIDES, write_corpus
from tests.documents import shared_vlm, write_mpdocvqa
from tests.official import Official
from tests.regions import regions_of, row_of, shared_lxmert, write_tsv
from tests.runs import write_recipe

ANNOTATORS = 10
SIZE = (40, 32)
TRAIN, VAL = 16, 7
"""Samples of the splits that `write_task` makes, each with one to four items."""


Writer = Callable[..., Official]
"""(directory, *, num_samples, seed, whole) -> the files; `whole` leaves no item without what is known about it."""


@dataclass(frozen=True)
class Scene:
    """A square in a picture."""

    color: str
    side: str

    @classmethod
    def draw(cls, rng: random.Random, path: Path) -> "Scene":
        """Choose one, and paint it; the ending of the path says how it is kept."""
        scene = cls(rng.choice(list(COLORS)), rng.choice(SIDES))
        picture = Image.new("RGB", SIZE, (245, 245, 245))
        left = 3 if scene.side == "left" else SIZE[0] - 17
        top = rng.randrange(2, SIZE[1] - 16)
        ImageDraw.Draw(picture).rectangle((left, top, left + 13, top + 13), fill=COLORS[scene.color])
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        return scene

    def asked(self) -> list[tuple[str, str, list[str]]]:
        """(question, answer, other answers of its kind) of all four things that can be asked."""
        color = next(name for name in COLORS if name != self.color)
        return [
            ("What color is the square?", self.color, [name for name in COLORS if name != self.color]),
            (f"Is the square {color}?", "no", ["yes"]),
            ("On which side is it?", self.side, [side for side in SIDES if side != self.side]),
            ("How many squares are there?", "1", ["2", "none"]),
        ]


def num_items(sample: int) -> int:
    """One to four, by turns."""
    return 1 + sample % 4


def write_gqa(directory: Path, *, num_samples: int, seed: int, whole: bool = False) -> Official:  # noqa: ARG001
    """Every question has its answer."""
    corpus = write_corpus(directory, num_images=num_samples, questions_per_image=4, seed=seed)
    return Official("gqa", corpus.images, (corpus.questions,))


def write_vqa(directory: Path, *, num_samples: int, seed: int, whole: bool = False) -> Official:
    """VQA v2's questions with the answers of ten annotators, of whom some err; and, unless `whole`, a list of Visual
    Genome's in ALBEF's form beside them, one of it without an answer."""
    asked, known, listed = [], [], []
    for number in range(num_samples):
        rng = random.Random(f"vqa/{seed}/{number}")
        if number % 4 == 3 and not whole:
            scene = Scene.draw(rng, directory / "images" / "vg" / f"{number}.png")
            for place, (question, answer, _) in enumerate(scene.asked()[: num_items(number)]):
                row = {"image": f"vg/{number}.png", "dataset": "vg", "question_id": 10 * number + place}
                known_answer = {} if number == 3 and place == 0 else {"answer": answer}
                listed.append({**row, "question": question, **known_answer})
            continue
        scene = Scene.draw(rng, directory / "images" / f"COCO_val2014_{number:012d}.jpg")
        for place, (question, answer, others) in enumerate(scene.asked()[: num_items(number)]):
            ids = {"question_id": 100 * number + place, "image_id": number}
            errors = rng.randrange(5)
            said = [answer] * (ANNOTATORS - errors) + [rng.choice(others) for _ in range(errors)]
            asked.append({**ids, "question": question})
            known.append(
                {
                    **ids,
                    "question_type": " ".join(question.lower().split()[:2]),
                    "answer_type": "yes/no" if answer == "no" else "number" if answer == "1" else "other",
                    "multiple_choice_answer": answer,
                    "answers": [
                        {"answer": text, "answer_confidence": "yes", "answer_id": person}
                        for person, text in enumerate(said, start=1)
                    ],
                }
            )
    official, annotations = directory / "questions.json", directory / "annotations.json"
    official.write_text(json.dumps({"info": {}, "data_subtype": "val2014", "questions": asked}))
    annotations.write_text(json.dumps({"info": {}, "data_subtype": "val2014", "annotations": known}))
    genome = directory / "vg.json"
    genome.write_text(json.dumps(listed))
    return Official("vqa", directory / "images", (official, genome) if listed else (official,), (annotations,))


def write_snli_ve(directory: Path, *, num_samples: int, seed: int, whole: bool = False) -> Official:
    """Hypotheses that follow, contradict, or cannot be told; one without a label unless `whole`."""
    rows = []
    for number in range(num_samples):
        rng = random.Random(f"snli_ve/{seed}/{number}")
        scene = Scene.draw(rng, directory / "images" / f"{1000 + number}.jpg")
        wrong = next(side for side in SIDES if side != scene.side)
        said = [
            (f"The square is {scene.color}.", "entailment"),
            (f"The square is on the {wrong}.", "contradiction"),
            ("The square is made of wood.", "neutral"),
            (f"Something stands on the {scene.side}.", "entailment"),
            (f"Nothing is {scene.color}.", "contradiction"),
        ]
        for place, (sentence, label) in enumerate(said[number % 2 : number % 2 + num_items(number)]):
            row = {
                "Flickr30K_ID": str(1000 + number),
                "pairID": f"{1000 + number}.jpg#{place}r1",
                "sentence2": sentence,
            }
            rows.append(row | ({} if number == 5 and place == 0 and not whole else {"gold_label": label}))
    return Official("snli_ve", directory / "images", (_lines(directory / "pairs.jsonl", rows),))


def write_nlvr2(directory: Path, *, num_samples: int, seed: int, whole: bool = False) -> Official:
    """Statements about two pictures, in numbered directories as those of training; one without a label unless `whole`.

    Every second sentence is said of several pairs.
    """
    rows = []
    for number in range(num_samples):
        rng = random.Random(f"nlvr2/{seed}/{number}")
        folder, pair = number % 3, f"train-{number // 2}-{number % 2}"
        one, other = (
            Scene.draw(rng, directory / "images" / str(folder) / f"{pair}-img{place}.png") for place in range(2)
        )
        said = [
            ("Both squares are on the left.", (one.side, other.side) == ("left", "left")),
            ("Both squares have one color.", one.color == other.color),
            ("At least one square is red.", "red" in (one.color, other.color)),
            (f"The second square is {rng.choice(list(COLORS))}.", None),
        ]
        for place, (sentence, truth) in enumerate(said[: num_items(number)]):
            truth = sentence.split()[-1] == f"{other.color}." if truth is None else truth
            row = {"identifier": f"{pair}-{place}", "sentence": sentence, "directory": folder, "synset": "square"}
            rows.append(row | ({} if number == 5 and place == 0 and not whole else {"label": str(truth)}))
    return Official("nlvr2", directory / "images", (_lines(directory / "statements.json", rows),))


def seen_in(scene: Scene, rng: random.Random) -> Regions:
    """What a detector makes of a scene: the square by color and side, and what is not there, in any order."""
    kinds = [10 * (1 + list(COLORS).index(scene.color)) + SIDES.index(scene.side), 1, 2, 3]
    rng.shuffle(kinds)
    return regions_of(*kinds, size=SIZE, seed=rng.randrange(100))


def write_lxmert(directory: Path, *, num_samples: int, seed: int, whole: bool = False, of: str = "vqa") -> Official:
    """Questions with scores of answers, some of which nobody gave, over regions in two files; one without a label
    unless `whole`."""
    rows, seen = [], []
    for number in range(num_samples):
        rng = random.Random(f"lxmert/{seed}/{number}")
        scene, image_id = Scene(rng.choice(list(COLORS)), rng.choice(SIDES)), f"COCO_val2014_{number:012d}"
        seen.append(row_of(image_id, seen_in(scene, rng)))
        for place, (question, answer, others) in enumerate(scene.asked()[: num_items(number)]):
            name: int | str = 1000 * (number + 1) + place
            label = {answer: 1, rng.choice(others): 0.3} if place % 2 else {answer: rng.choice((0.6, 0.9, 1))}
            row = {"question_id": name if of == "vqa" else f"0{name}", "img_id": image_id, "sent": question}
            known = {} if number == 5 and place == 0 and not whole else {"label": {} if number == 6 else label}
            types = {"answer_type": "other", "question_type": "what"} if of == "vqa" else {}
            rows.append(row | known | types)
    path = directory / f"{of}.json"
    files = [write_tsv(directory / f"{part}_obj36.tsv", seen[part::2]) for part in range(2)]
    path.write_text(json.dumps(rows))
    return Official("lxmert", None, (path,), regions=tuple(files))


def write_lxmert_nlvr2(directory: Path, *, num_samples: int, seed: int, whole: bool = False) -> Official:
    """Statements about two pictures in LXMERT's form, over regions; one without a label unless `whole`."""
    rows, seen = [], []
    for number in range(num_samples):
        rng = random.Random(f"lxmert_nlvr2/{seed}/{number}")
        pair, scenes = f"dev-{number // 2}-{number % 2}", []
        for place in range(2):
            scenes.append(Scene(rng.choice(list(COLORS)), rng.choice(SIDES)))
            seen.append(row_of(f"{pair}-img{place}", seen_in(scenes[-1], rng)))
        one, other = scenes
        said = [
            ("Both squares are on the left.", (one.side, other.side) == ("left", "left")),
            ("Both squares have one color.", one.color == other.color),
            ("At least one square is red.", "red" in (one.color, other.color)),
            ("The second square is red.", other.color == "red"),
        ]
        for place, (sentence, truth) in enumerate(said[: num_items(number)]):
            row = {"identifier": f"{pair}-{place}", "uid": f"nlvr2_dev_{len(rows)}", "sent": sentence}
            row |= {"img0": f"{pair}-img0", "img1": f"{pair}-img1"}
            rows.append(row | ({} if number == 5 and place == 0 and not whole else {"label": int(truth)}))
    seen_file = write_tsv(directory / "valid_obj36.tsv", seen)
    path = directory / "valid.json"
    path.write_text(json.dumps(rows))
    return Official("lxmert", None, (path,), regions=(seen_file,))


CORPORA: Mapping[str, Writer] = {
    "gqa": write_gqa,
    "vqa": write_vqa,
    "snli_ve": write_snli_ve,
    "nlvr2": write_nlvr2,
    "lxmert": write_lxmert,
    "mpdocvqa": write_mpdocvqa,
}
"""One for each format of the tasks of shards.tasks.TASKS."""

MORE_CORPORA: Mapping[str, tuple[str, Writer]] = {"lxmert_nlvr2": ("nlvr2", write_lxmert_nlvr2)}
"""Others of such a task."""

OVER_REGIONS = ("lxmert", "lxmert_nlvr2")
"""Corpora whose images are regions."""

NEEDS: Mapping[str, Mapping[str, Any]] = {"vqa": {"answers": {"min_count": 1}}, "lxmert": {"answers": {"min_count": 1}}}
"""What a corpus wants of a recipe beyond data and sizes, for so few items."""


def task_of(corpus: str) -> str:
    """Of which task a corpus is."""
    return MORE_CORPORA[corpus][0] if corpus in MORE_CORPORA else corpus


def writer_of(corpus: str) -> Writer:
    """What writes its files."""
    return MORE_CORPORA[corpus][1] if corpus in MORE_CORPORA else CORPORA[corpus]


def write_task(directory: Path, corpus: str) -> dict[str, str]:
    """Files and shards of two splits of a corpus: a `data` section."""
    data = {}
    for seed, (split, num_samples) in enumerate((("train", TRAIN), ("val", VAL))):
        files = writer_of(corpus)(directory / split / "files", num_samples=num_samples, seed=seed)
        data[split] = str(files.build(directory / split / "shards"))
    return data


def task_recipe(path: Path, corpus: str, data: Mapping[str, Any], **sections: Any) -> Path:
    """A recipe of a corpus' task in which everything is trained, from scratch, or from a small LXMERT, or adapters of a
    small vision-language model: see `write_recipe`."""
    needs = dict(NEEDS.get(corpus, {}))
    if corpus in OVER_REGIONS:
        towers = dict.fromkeys(("vision", "match"), shared_lxmert())
        needs["model"] = {**towers, "second_stream": "none", "fusion": {"name": "sum"}, "freeze": []}
    if corpus == "mpdocvqa":
        needs |= {"model": {"vlm": shared_vlm()}, "losses": {"page": 0.25}}
    return write_recipe(path, data, task=task_of(corpus), **{**needs, **sections})


def _lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
