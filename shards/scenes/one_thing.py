"""Questions that look at one thing: its color, name, size and place, and whether it is there."""

from collections.abc import Iterator

from shards.scenes.asked import (
    Asked,
    Fact,
    Kind,
    Step,
    absent,
    is_so,
    named,
    present,
    select,
    so,
    there_is,
    with_article,
    yes,
)
from shards.scenes.world import COLORS, SHAPES, SIZES, Dice, Scene, Thing


def query_color(scene: Scene, dice: Dice) -> Iterator[Asked]:
    """Of each thing; of a lone thing in two wordings, which GQA calls equivalent."""
    wordings = [("directOf", "What color is the"), ("directWhich", "Which color is the")]
    if len(scene.things) > 1:
        wordings = [dice.pick(wordings, "color wording")]
    for thing in scene.things:
        for detailed, words in wordings:
            yield Asked(
                kind=Kind("query", "attr", detailed),
                text=f"{words} {thing.shape}?",
                answer=thing.color,
                full_answer=f"The {thing.shape} is {thing.color}.",
                program=(select(thing.shape, thing), Step("query", "color", (0,))),
                topic=f"{thing.shape}_color",
                facts=is_so(thing.shape, "color", thing.color),
                choices=tuple(COLORS),
                group="color",
                mentions=named(thing),
            )


def query_shape(scene: Scene, dice: Dice) -> Iterator[Asked]:
    """Two at most, by color or size where that tells one thing from the others; of a lone thing also without."""
    by_value: dict[tuple[str, str], list[Thing]] = {}
    for thing in scene.things:
        by_value.setdefault(("color", thing.color), []).append(thing)
        by_value.setdefault(("size", thing.size), []).append(thing)
    telling = [(*value, things[0]) for value, things in by_value.items() if len(things) == 1]
    for attribute, value, thing in dice.shuffle(telling, "telling")[:2]:
        yield _shape_question(
            thing,
            "categoryThat",
            f"Which shape is {value}?",
            f"The {thing.shape} is {value}.",
            (Step(f"filter {attribute}", value, (0,)),),
            is_so(thing.shape, attribute, value),
        )
    if len(scene.things) == 1:
        (thing,) = scene.things
        known = frozenset({present(thing.shape)})
        yield _shape_question(thing, "categoryThis", "What shape is it?", f"The shape is a {thing.shape}.", (), known)


def _shape_question(
    thing: Thing, detailed: str, text: str, full_answer: str, filters: tuple[Step, ...], facts: frozenset[Fact]
) -> Asked:
    return Asked(
        kind=Kind("query", "cat", detailed),
        text=text,
        answer=thing.shape,
        full_answer=full_answer,
        program=(select("shape", thing), *filters, Step("query", "name", (len(filters),))),
        topic="shape",
        facts=facts,
        choices=SHAPES,
        group="shape",
        mentions=(("shape", thing.object_id), *named(thing)),
        answer_object=thing.object_id,
    )


def choose_attribute(scene: Scene, dice: Dice) -> Iterator[Asked]:
    """Between two colors or two sizes."""
    thing = dice.pick(scene.things, "choose attribute")
    attribute, values = dice.pick((("color", tuple(COLORS)), ("size", tuple(SIZES))), "attribute")
    value = getattr(thing, attribute)
    other = dice.pick([v for v in values if v != value], "other value")
    options = tuple(dice.shuffle((value, other), "options"))
    yield Asked(
        kind=Kind("choose", "attr", "chooseAttr"),
        text=f"Is the {thing.shape} {options[0]} or {options[1]}?",
        answer=value,
        full_answer=f"The {thing.shape} is {value}.",
        program=(select(thing.shape, thing), Step(f"choose {attribute}", "|".join(options), (0,))),
        topic=f"{thing.shape}_{attribute}",
        facts=is_so(thing.shape, attribute, value),
        choices=options,
        group=attribute,
        mentions=named(thing),
    )


def ask_place(scene: Scene, dice: Dice) -> Iterator[Asked]:
    """On which side a thing is, as a query, or at which height, as a choice."""
    thing = dice.pick(scene.things, "place")
    if dice.pick((True, False), "side"):
        kind, axis, answer, choices = Kind("query", "attr", "positionQuery"), "hposition", thing.side, ("left", "right")
        text, step = f"On which side of the image is the {thing.shape}?", Step("query", axis, (0,))
        place = f"on the {answer}"
    else:
        choices = tuple(dice.shuffle(("top", "bottom"), "heights"))
        kind, axis, answer = Kind("choose", "attr", "positionChoose"), "vposition", thing.height
        text = f"Is the {thing.shape} in the {choices[0]} or in the {choices[1]} of the image?"
        step, place = Step(f"choose {axis}", "|".join(choices), (0,)), f"in the {answer}"
    yield Asked(
        kind=kind,
        text=text,
        answer=answer,
        full_answer=f"The {thing.shape} is {place} of the image.",
        program=(select(thing.shape, thing), step),
        topic=f"{thing.shape}_{axis}",
        facts=is_so(thing.shape, axis, answer),
        choices=choices,
        mentions=named(thing),
    )


def verify_existence(scene: Scene, dice: Dice) -> Iterator[Asked]:
    """Whether there is a shape of some name, or any shape of some color."""
    exists = dice.pick((True, False), "exists")
    if dice.pick((True, False), "by name"):
        there = {thing.shape: thing for thing in scene.things}
        name = dice.pick([shape for shape in SHAPES if (shape in there) == exists], "name")
        thing, words, kind = there.get(name), name, Kind("verify", "obj", "exist")
        program: tuple[Step, ...] = (select(name, thing), Step("exist", "?", (0,)))
        fact = present(name) if exists else absent(name)
    else:
        there = {thing.color: thing for thing in scene.things}
        name = dice.pick([color for color in COLORS if (color in there) == exists], "name")
        thing, words, kind = there.get(name), f"{name} shape", Kind("verify", "obj", "existAttr")
        program = (select("shape", thing), Step("filter color", name, (0,)), Step("exist", "?", (1,)))
        fact = ("some" if exists else "no", name)
    yield Asked(
        kind=kind,
        text=f"Is there {with_article(words)}?",
        answer=yes(exists),
        full_answer=there_is(exists, words),
        program=program,
        topic=words.replace(" ", "_"),
        facts=frozenset({fact}),
        mentions=((words, thing.object_id),) if thing else (),
    )


def verify_colored_shape(scene: Scene, dice: Dice) -> Iterator[Asked]:
    """Whether there is a shape of this name and color; a no has another color or, less often, a name not there."""
    thing = dice.pick(scene.things, "colored shape")
    shape, color = thing.shape, thing.color
    exists = dice.pick((True, False), "colored shape exists")
    if not exists and dice.pick((True, True, True, False), "other color"):
        color = dice.pick([c for c in COLORS if c != color], "which other color")
    elif not exists:
        shape = dice.pick([s for s in SHAPES if s not in {t.shape for t in scene.things}], "which other shape")
    shown = thing if shape == thing.shape else None
    yield Asked(
        kind=Kind("verify", "obj", "existAttr"),
        text=f"Is there {with_article(f'{color} {shape}')}?",
        answer=yes(exists),
        full_answer=there_is(exists, f"{color} {shape}"),
        program=(select(shape, shown), Step("filter color", color, (0,)), Step("exist", "?", (1,))),
        topic=f"{shape}_{color}",
        facts=is_so(shape, "color", color) if exists else frozenset({("none", color, shape)}),
        mentions=((f"{color} {shape}", thing.object_id),) if exists else named(thing),
    )


def verify_attribute(scene: Scene, dice: Dice) -> Iterator[Asked]:
    """Whether a thing has this color."""
    thing = dice.pick(scene.things, "verify attribute")
    holds = dice.pick((True, False), "attribute holds")
    color = thing.color if holds else dice.pick([c for c in COLORS if c != thing.color], "attribute not held")
    yield Asked(
        kind=Kind("verify", "attr", "verifyAttr"),
        text=f"Is the {thing.shape} {color}?",
        answer=yes(holds),
        full_answer=f"{so(holds)} the {thing.shape} is {thing.color}.",
        program=(select(thing.shape, thing), Step("verify color", color, (0,))),
        topic=f"{thing.shape}_{color}",
        facts=is_so(thing.shape, "color", color, holds),
        mentions=named(thing),
    )
