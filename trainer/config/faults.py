"""What is wrong with a recipe, one line per fault: where, which key, found, expected, and the way out."""

import difflib
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from shards.config_base import Section
from shards.remote.address import without_secrets
from trainer.config.yaml_text import format_value

_EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "tuple_type": "a list in [brackets]",
    "dict_type": "keys with values under it",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "letters, digits and . _ - + = @, not beginning with a dot or a dash",
}


class Fault(NamedTuple):
    """Something wrong with the value of a dotted key."""

    key: str
    message: str


def wrong_medium(reference: str, reads: str, directory: str, holds: str) -> str:
    """That a tower and shards do not go together."""
    options, towers = {"pixels": "--images", "regions": "--regions"}, {"pixels": "BLIP's", "regions": "LXMERT's"}
    return (
        f"model.vision: {reference} reads {reads}, and {directory} holds {holds}; name shards built with "
        f"{options[reads]}, or a tower such as {towers[holds]}"
    )


def wrong_width(reference: str, reads: int, directory: str, holds: object) -> str:
    """That a tower reads regions of another width than shards hold."""
    return (
        f"model.vision: {reference} reads regions of {reads} numbers, and {directory} holds {holds}; name a "
        "checkpoint, or shards, of the same detector"
    )


def without_words(directory: str) -> str:
    """That shards hold pages of which nobody knows the words."""
    return (
        f"{directory}: its pages have no words, and model.reader reads nothing else; build the shards with --ocr, or "
        "name a vision-language model in model.vlm and set model.reader=null"
    )


def leaf_keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """The dotted keys of all values under a section, in the order of their declaration."""
    for name, field in section.model_fields.items():
        if is_section(field.annotation):
            yield from leaf_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def is_section(annotation: Any) -> bool:
    """Whether a field of this type has keys of its own."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def fault_line(fault: Fault, source_of: Callable[[str], str]) -> str:
    """A fault behind the file or override that set its key, which `source_of` gives."""
    return without_secrets(f"{source_of(fault.key)}: {fault.key + ': ' if fault.key else ''}{fault.message}")


def value_faults(error: ValidationError, root: type[Section]) -> tuple[Fault, ...]:
    """What pydantic found wrong with single values.

    Args:
        root: the model that was validated.
    """
    return tuple(Fault(_dotted(detail["loc"]), _message(detail, root)) for detail in error.errors())


def _dotted(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _message(detail: ErrorDetails, root: type[Section]) -> str:
    kind, location, found = detail["type"], detail["loc"], detail["input"]
    if kind == "extra_forbidden":
        return f"unknown key; {_nearest(location, root)}"
    if kind == "missing":
        return _missing(location, root)
    if kind == "model_type":
        return f"expected a section with keys under it, got {_shown(found)}; remove the line or fill the section"
    expected = _expected(detail)
    if kind.endswith("_type") and _allows_null(_annotation(location, root)):
        expected += " or null"
    hint = "; put it in quotes inside the value ('\"...\"')" if kind == "string_type" and _is_plain(found) else ""
    return f"expected {expected}, got {_shown(found)}{hint}"


def _expected(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "literal_error":
        choices = [part.strip("'") for part in context["expected"].replace(" or ", ", ").split(", ")]
        near = difflib.get_close_matches(str(detail["input"]), choices, n=1)
        return f"one of {', '.join(choices)}" + (f" (did you mean {near[0]}?)" if near else "")
    if kind in _EXPECTED:
        return _EXPECTED[kind].format(**context)
    return f"something else: {detail['msg']}"


def _missing(location: tuple[int | str, ...], root: type[Section]) -> str:
    section = _section(location[:-1], root)
    about = section.model_fields[str(location[-1])].description or "it has no default"
    return f"is not set and has no default; set it ({about.splitlines()[0].rstrip('.')})"


def _nearest(location: tuple[int | str, ...], root: type[Section]) -> str:
    """A key that may have been meant: near the name in its section, else a key of that name anywhere."""
    path, name = [str(part) for part in location[:-1]], str(location[-1])
    own = list(_section(location[:-1], root).model_fields)
    near = difflib.get_close_matches(name, own, n=1)
    if near:
        return f"did you mean {'.'.join([*path, near[0]])}?"
    everywhere = list(leaf_keys(root))
    last_names = [key.rpartition(".")[2] for key in everywhere]
    for match in difflib.get_close_matches(name, last_names, n=1, cutoff=0.8):
        return f"did you mean {everywhere[last_names.index(match)]}?"
    return f"known here: {', '.join(own)}"


def _annotation(location: tuple[int | str, ...], root: type[Section]) -> Any:
    """The type of the field at a location; None where it is not a field, such as inside a list."""
    if not location or isinstance(location[-1], int):
        return None
    return _section(location[:-1], root).model_fields[str(location[-1])].annotation


def _section(location: tuple[int | str, ...], root: type[Section]) -> type[Section]:
    section = root
    for part in location:
        section = section.model_fields[str(part)].annotation  # type: ignore[assignment] - only sections have children
    return section


def _allows_null(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def _shown(value: Any) -> str:
    text = format_value(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
