"""Scenes and their questions as the records of GQA's files: questions, scene graphs, choices."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from shards.scenes import one_thing, whole_picture
from shards.scenes.asked import Asked, entails
from shards.scenes.raster import bounding_box
from shards.scenes.world import IMAGE_SIZE, Dice, Scene

TEMPLATES: tuple[Callable[[Scene, Dice], Iterator[Asked]], ...] = (
    one_thing.query_color,
    one_thing.query_shape,
    one_thing.choose_attribute,
    one_thing.ask_place,
    one_thing.verify_existence,
    one_thing.verify_colored_shape,
    one_thing.verify_attribute,
    whole_picture.ask_weather,
    whole_picture.logical,
    whole_picture.ask_relation,
    whole_picture.compare,
)
"""Where a template asks for yes or no, each answer is equally likely for the same words."""


def questions(scene: Scene, dice: Dice) -> dict[str, Asked]:
    """Question id -> question, 10 to 15 of them; the ids open with the image id."""
    asked = [question for template in TEMPLATES for question in template(scene, dice)]
    return {f"{scene.image_id}{number:02d}": question for number, question in enumerate(asked)}


def question_records(scene: Scene, asked: dict[str, Asked]) -> dict[str, dict[str, Any]]:
    """The entries of `*_questions.json`; entailed and equivalent ids are those of the same scene."""
    programs = {question_id: _program_text(question) for question_id, question in asked.items()}
    return {
        question_id: {
            "semantic": [
                {"operation": step.operation, "dependencies": list(step.inputs), "argument": step.argument}
                for step in question.program
            ],
            "entailed": [other for other in asked if other != question_id and entails(question, asked[other])],
            "equivalent": [other for other in asked if programs[other] == programs[question_id]],
            "question": question.text,
            "imageId": scene.image_id,
            "isBalanced": True,
            "groups": {"global": question.group, "local": f"{question.kind.detailed}-{question.topic}"},
            "answer": question.answer,
            "semanticStr": programs[question_id],
            "annotations": {
                "answer": {"0": question.answer_object} if question.answer_object else {},
                "question": word_positions(question.text, question.mentions),
                "fullAnswer": word_positions(question.full_answer, question.mentions),
            },
            "types": question.kind._asdict(),
            "fullAnswer": question.full_answer,
        }
        for question_id, question in asked.items()
    }


def scene_graph(scene: Scene) -> dict[str, Any]:
    """The entry of `*_sceneGraphs.json`, boxes in pixels."""
    objects = {}
    for thing in scene.things:
        box = dict(zip("xywh", bounding_box(thing), strict=True))
        relations = [
            {"name": name, "object": other.object_id}
            for other in scene.things
            for name in whole_picture.relations(thing, other)
        ]
        attributes = {"attributes": [thing.color, thing.size], "relations": relations}
        objects[thing.object_id] = {"name": thing.shape, **box, **attributes}
    return {"width": IMAGE_SIZE, "height": IMAGE_SIZE, "weather": scene.weather, "objects": objects}


def choice_records(asked: dict[str, Asked]) -> dict[str, dict[str, list[str]]]:
    """The entries of `*_choices.json`."""
    return {
        question_id: {"valid": list(question.choices), "plausible": list(question.plausible or question.choices)}
        for question_id, question in asked.items()
    }


def json_members(entries: Mapping[str, Any]) -> Iterator[bytes]:
    """One JSON member per line: a file that can be read by eye and by `grep`."""
    for key, value in entries.items():
        yield msgspec.json.encode(key) + b": " + msgspec.json.encode(value)


def json_object(members: Sequence[bytes]) -> bytes:
    """A file with one JSON object."""
    return b"{\n" + b",\n".join(members) + b"\n}\n"


def word_positions(text: str, mentions: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Where a text names objects, as GQA writes it: "4" for its fifth word, "4:6" for its fifth and sixth.

    Punctuation counts as a word.
    """
    words = re.findall(r"\w+|[^\w\s]", text)
    found = {}
    for phrase, object_id in mentions:
        wanted = phrase.split()
        for start in range(len(words) - len(wanted) + 1):
            if words[start : start + len(wanted)] == wanted:
                found[str(start) if len(wanted) == 1 else f"{start}:{start + len(wanted)}"] = object_id
    return found


def _program_text(question: Asked) -> str:
    steps = []
    for step in question.program:
        inputs = f" [{', '.join(map(str, step.inputs))}]" if step.inputs else ""
        steps.append(f"{step.operation}: {step.argument}{inputs}")
    return "->".join(steps)
