"""Questions that look at several things or at the whole picture: sky, logic, relations, comparisons."""

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
    stands,
    unordered,
    with_article,
    yes,
)
from shards.scenes.world import SHAPES, SKIES, Dice, Scene, Thing

OPPOSITE = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
CHOSEN_AS = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}
"""How GQA answers a choice between two relations."""


def relations(first: Thing, second: Thing) -> list[str]:
    """Where the first thing stands as seen from the second, by cells of the grid."""
    names = []
    if first.column != second.column:
        names.append("to the left of" if first.column < second.column else "to the right of")
    if first.row != second.row:
        names.append("above" if first.row < second.row else "below")
    return names


def ask_weather(scene: Scene, dice: Dice) -> Iterator[Asked]:
    """One question about the sky: verify, choose or query."""
    weather, options = scene.weather, tuple(dice.shuffle(tuple(SKIES), "skies"))
    verified = options[0] == weather
    form = dice.pick(("verify", "choose", "query"), "weather form")
    text, answer, step, detailed = {
        "verify": (f"Is it {options[0]}?", yes(verified), Step("verify weather", options[0], (0,)), "weatherVerify"),
        "choose": (
            f"Is it {options[0]} or {options[1]}?",
            weather,
            Step("choose weather", "|".join(options), (0,)),
            "weatherChoose",
        ),
        "query": ("How is the weather?", weather, Step("query", "weather", (0,)), "weather"),
    }[form]
    yield Asked(
        kind=Kind(form, "global", detailed),
        text=text,
        answer=answer,
        full_answer=f"{so(verified)} it is {weather}." if form == "verify" else f"It is {weather}.",
        program=(Step("select", "scene"), step),
        topic="weather",
        facts=is_so("sky", "weather", weather),
        choices=("yes", "no") if form == "verify" else options,
        group=None if form == "verify" else "weather",
    )


def logical(scene: Scene, dice: Dice) -> Iterator[Asked]:
    """Two shapes with `and` or `or`; a lone thing is asked about with `or` only, where both answers are possible."""
    holds = dice.pick((True, False), "logical holds")
    there = {thing.shape: thing for thing in dice.shuffle(scene.things, "logical there")}
    missing = dice.shuffle([shape for shape in SHAPES if shape not in there], "logical missing")
    both = len(there) > 1 and dice.pick((True, False), "both")
    if both:
        shapes = list(there) if holds else [next(iter(there)), missing[0]]
    else:
        shapes = [next(iter(there)), missing[0]] if holds else missing[:2]
    first, second = dice.shuffle(shapes, "logical order")
    select_first, select_second = select(first, there.get(first)), select(second, there.get(second))
    exist = (Step("exist", "?", (0,)), Step("exist", "?", (2,)))
    yield Asked(
        kind=Kind("logical", "obj", "existAnd" if both else "existOr"),
        text=f"Is there both a {first} and a {second}?" if both else f"Is there a {first} or a {second}?",
        answer=yes(holds),
        full_answer=_logical_answer(shapes, both, holds),
        program=(select_first, exist[0], select_second, exist[1], Step("and" if both else "or", "", (1, 3))),
        topic="_".join(sorted(shapes)),
        facts=_logical_facts(shapes, both, holds),
        mentions=named(*(there[shape] for shape in shapes if shape in there)),
    )


def _logical_answer(shapes: list[str], both: bool, holds: bool) -> str:
    """The shape that is there comes before the one that is missing."""
    if both:
        return f"Yes, there is a {shapes[0]} and a {shapes[1]}." if holds else f"No, there is no {shapes[1]}."
    return f"Yes, there is {with_article(shapes[0])}." if holds else f"No, there is no {shapes[0]} and no {shapes[1]}."


def _logical_facts(shapes: list[str], both: bool, holds: bool) -> frozenset[Fact]:
    if both == holds:
        return frozenset(present(shape) if both else absent(shape) for shape in shapes)
    return frozenset({unordered("not both" if both else "either", *shapes)})


def ask_relation(scene: Scene, dice: Dice) -> Iterator[Asked]:
    """What stands somewhere; and whether, or where, something stands."""
    pairs = [(a, name, b) for a in scene.things for b in scene.things for name in relations(a, b)]
    if not pairs:
        return
    first, name, second = dice.pick(pairs, "what stands")
    yield _what_stands(first, name, second)
    first, name, second = dice.pick(pairs, "where it stands")
    if dice.pick((True, False), "relation verified"):
        yield _verify_relation(first, name, second, dice.pick((True, False), "relation holds"))
    else:
        yield _choose_relation(first, name, second, tuple(dice.shuffle((name, OPPOSITE[name]), "relation options")))


def _what_stands(first: Thing, name: str, second: Thing) -> Asked:
    return Asked(
        kind=Kind("query", "rel", "relS"),
        text=f"What is {name} the {second.shape}?",
        answer=first.shape,
        full_answer=f"The {first.shape} is {name} the {second.shape}.",
        program=(
            select(second.shape, second),
            Step("relate", f"_,{name},s ({first.object_id})", (0,)),
            Step("query", "name", (1,)),
        ),
        topic=f"{second.shape}_{name},s",
        facts=stands(first.shape, name, second.shape),
        choices=SHAPES,
        plausible=tuple(shape for shape in SHAPES if shape != second.shape),
        group="shape",
        mentions=named(first, second),
        answer_object=first.object_id,
    )


def _verify_relation(first: Thing, name: str, second: Thing, holds: bool) -> Asked:
    asked_name = name if holds else OPPOSITE[name]
    return Asked(
        kind=Kind("verify", "rel", "relVerify"),
        text=f"Is the {first.shape} {asked_name} the {second.shape}?",
        answer=yes(holds),
        full_answer=f"{so(holds)} the {first.shape} is {name} the {second.shape}.",
        program=(
            select(second.shape, second),
            Step("verify rel", f"{first.shape},{asked_name},s ({first.object_id})", (0,)),
        ),
        topic=f"{second.shape}_{first.shape}",
        facts=stands(first.shape, asked_name, second.shape, holds),
        mentions=named(first, second),
    )


def _choose_relation(first: Thing, name: str, second: Thing, options: tuple[str, ...]) -> Asked:
    return Asked(
        kind=Kind("choose", "rel", "relChooser"),
        text=f"Is the {first.shape} {options[0]} or {options[1]} the {second.shape}?",
        answer=CHOSEN_AS[name],
        full_answer=f"The {first.shape} is {name} the {second.shape}.",
        program=(
            select(second.shape, second),
            Step("choose rel", f"{first.shape},{'|'.join(options)},s ({first.object_id})", (0,)),
        ),
        topic=f"{second.shape}_{first.shape}",
        facts=stands(first.shape, name, second.shape),
        choices=tuple(CHOSEN_AS[option] for option in options),
        mentions=named(first, second),
    )


def compare(scene: Scene, dice: Dice) -> Iterator[Asked]:
    """The color or the size of two things, either of which is the same half of the time."""
    if len(scene.things) < 2:
        return
    first, second = dice.shuffle(scene.things, "compared")
    attribute = dice.pick(("color", "size"), "compared attribute")
    different = dice.pick((True, False), "different")
    values = getattr(first, attribute), getattr(second, attribute)
    holds = (values[0] != values[1]) == different
    asked = f"different {attribute}s" if different else f"the same {attribute}"
    fact = f"{'same' if values[0] == values[1] else 'different'} {attribute}"
    yield Asked(
        kind=Kind("compare", "attr", "twoDifferent" if different else "twoSame"),
        text=f"Do the {first.shape} and the {second.shape} have {asked}?",
        answer=yes(holds),
        full_answer=f"{so(holds)} the {first.shape} is {values[0]} and the {second.shape} is {values[1]}.",
        program=(
            select(first.shape, first),
            select(second.shape, second),
            Step(f"{'different' if different else 'same'} {attribute}", "", (0, 1)),
        ),
        topic=f"{first.shape}_{second.shape}",
        facts=frozenset({present(first.shape), present(second.shape), unordered(fact, first.shape, second.shape)}),
        mentions=named(first, second),
    )
