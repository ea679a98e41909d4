"""The questions of rendered scenes in VQA v2's own format: ten people answer each, of whom up to three err."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from shards.scenes.asked import YES_NO, Asked
from shards.scenes.gqa_format import questions
from shards.scenes.raster import encode_png, paint
from shards.scenes.world import Dice, scene, split_of

NUM_ANNOTATORS = 10
MAX_ERRORS = 3
CONFIDENCES = ("yes", "maybe", "no")
SPLITS = ("train2014", "val2014", "test2015")
MIN_IMAGES = 4
"""The first images hold one of each split."""
_SUBTYPES = {"backbone": "train2014", "train": "train2014", "val": "val2014", "testdev": "test2015"}
QUESTION_TYPES = (
    "what color is the",
    "what shape is",
    "is there a",
    "is there",
    "what is",
    "is the",
    "is it",
    "do the",
    "which",
    "how is",
)
"""The beginnings that are told apart, as VQA does it; a longer one comes before a shorter one."""

Records = dict[str, list[dict[str, Any]]]


def subtype_of(number: int) -> str:
    """The split of an image number, by COCO's name."""
    return _SUBTYPES[split_of(number)]


def image_counts(num_images: int) -> Counter[str]:
    """How many images each split gets."""
    return Counter(map(subtype_of, range(num_images)))


def vqa_files(*, num_images: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file of the set, images first: a pure function of its arguments."""
    asked: Records = {split: [] for split in SPLITS}
    annotations: Records = {split: [] for split in SPLITS}
    for number in range(num_images):
        dice, shown, subtype = Dice(seed, number), scene(seed, number), subtype_of(number)
        yield f"images/COCO_{subtype}_{number:012d}.png", encode_png(paint(shown))
        for place, question in enumerate(questions(shown, dice).values()):
            ids = {"image_id": number, "question_id": number * 1000 + place}
            asked[subtype].append({"image_id": number, "question": question.text, "question_id": ids["question_id"]})
            annotations[subtype].append(annotation(question, dice, place) | ids)
    train = {answer["answer"] for record in annotations["train2014"] for answer in record["answers"]}
    yield "answer_list.json", msgspec.json.encode(sorted(train)) + b"\n"
    for split in SPLITS:
        about = {"info": {"description": f"Rendered scenes, seed {seed}", "version": "2.0"}, "license": {}}
        about |= {"data_subtype": split, "data_type": "mscoco"}
        yield f"v2_mscoco_{split}_annotations.json", _file(about, "annotations", annotations[split])
        about |= {"task_type": "Open-Ended"}
        yield f"v2_OpenEnded_mscoco_{split}_questions.json", _file(about, "questions", asked[split])


def annotation(question: Asked, dice: Dice, place: int) -> dict[str, Any]:
    """What ten people answer: the truth, but for those who err with another answer of the right kind."""
    wrong = [choice for choice in question.plausible or question.choices if choice != question.answer]
    errors = dice.pick(range(MAX_ERRORS + 1), "errors", place)
    erring = dice.shuffle(range(NUM_ANNOTATORS), "who errs", place)[:errors]
    answers = [
        {
            "answer": dice.pick(wrong, "error", place, person) if person in erring else question.answer,
            "answer_confidence": dice.pick(CONFIDENCES, "confidence", place, person),
            "answer_id": person + 1,
        }
        for person in range(NUM_ANNOTATORS)
    ]
    return {
        "question_type": question_type(question.text),
        "multiple_choice_answer": question.answer,
        "answers": answers,
        "answer_type": "yes/no" if question.answer in YES_NO else "other",
    }


def question_type(text: str) -> str:
    """How a question begins."""
    return next((words for words in QUESTION_TYPES if text.lower().startswith(words)), "none of the above")


def _file(about: dict[str, Any], name: str, records: list[dict[str, Any]]) -> bytes:
    """One record per line: a file that can be read by eye and by `grep`."""
    head = msgspec.json.encode(about)[:-1] + b',\n"' + name.encode() + b'": [\n'
    return head + b",\n".join(map(msgspec.json.encode, records)) + b"\n]}\n"
