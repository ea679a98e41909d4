"""A file of questions as its owner keeps it, CSV, TSV, JSON lines or a JSON array: columns are guessed, and said."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from shards.annotations.table import LONGEST_LINE
from shards.errors import ConfigError, DataError
from shards.format.images import EXTENSIONS

Role = Literal["image", "question", "answer", "question_id"]
ROLES: tuple[Role, ...] = get_args(Role)
NEEDED: tuple[Role, ...] = ("image", "question", "answer")
NAMES: dict[Role, tuple[str, ...]] = {
    "image": (
        *(
            "image",
            "image_path",
            "image_file",
            "image_name",
            "img",
            "img_path",
            "photo",
            "picture",
            "file",
            "file_name",
        ),
        *("filename", "path", "image_id", "img_id", "imageid"),
    ),
    "question": ("question", "query", "q", "prompt", "question_text", "sent", "text"),
    "answer": ("answer", "a", "label", "target", "response", "ground_truth", "gt", "answers"),
    "question_id": ("question_id", "questionid", "qid", "id"),
}
"""What columns are called, the likeliest first; compared in lower case, with `_` for blanks and hyphens."""

_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_IMAGE_ENDINGS = tuple(f".{ending}" for ending in {*EXTENSIONS.values(), "jpeg", "bmp", "gif", "tif", "tiff", "heic"})
_LOOKED_AT = 200
"""Rows whose values are looked at to tell columns apart."""
_LIKELY = 0.5
"""Part of the values that have to look like what a column is taken for."""


class Asked(NamedTuple):
    """A row: a question about an image, by the words of the file."""

    place: str
    """Such as `line 12`, for messages."""
    image: str
    question: str
    answer: str | None
    """None where there is none."""
    question_id: str | None


class Table(NamedTuple):
    """A file of questions, read."""

    kind: str
    """What the file is, for a person: `CSV, cells between semicolons`."""
    columns: dict[Role, str]
    """Which column was taken for what."""
    guessed: frozenset[Role]
    """Those that no name told, but only what stands in them."""
    rows: list[Asked]


class _Raw(NamedTuple):
    kind: str
    names: list[str]
    records: list[tuple[str, Mapping[str, Any]]]
    """(place, values by column)"""


def read_table(path: Path, given: Mapping[Role, str] | None = None, *, needed: Sequence[Role] = NEEDED) -> Table:
    """The questions of a file; blank rows are passed over.

    Args:
        path: .csv, .tsv, .txt, .jsonl or .json, in UTF-8.
        given: columns by their role, where the user names them.
        needed: roles without which the file is of no use.

    Raises:
        ConfigError: a column that was named is not there, or none can be told to hold images, questions or answers.
        DataError: the file cannot be read; the message names the line.
    """
    raw = _read(path)
    if not raw.records:
        raise DataError(f"{path}: has no rows; expected a question about an image in each")
    columns, guessed = choose_columns(
        path, raw.names, [values for _, values in raw.records[:_LOOKED_AT]], given or {}, needed
    )
    rows = [_asked(place, values, columns) for place, values in raw.records]
    return Table(raw.kind, columns, guessed, [row for row in rows if row.image or row.question])


def choose_columns(
    path: Path,
    names: Sequence[str],
    sample: Sequence[Mapping[str, Any]],
    given: Mapping[Role, str],
    needed: Sequence[Role] = NEEDED,
) -> tuple[dict[Role, str], frozenset[Role]]:
    """Which column has which role, and the roles that only the values told.

    A column that the user names comes first, then one with a telling name, then one whose values tell: image files,
    texts that end in a question mark; the answer is what is left over.

    Raises:
        ConfigError: as `read_table`.
    """
    found: dict[Role, str] = {}
    for role, name in given.items():
        if name not in names:
            raise ConfigError(f"--columns {role}={name}: {path} has no such column; it has {_listed(names)}")
        found[role] = name
    plain = {name: "_".join(name.lower().replace("-", " ").split()) for name in names}
    for role in ROLES:
        for wanted in NAMES[role]:
            free = [name for name in names if plain[name] == wanted and name not in found.values()]
            if role not in found and free:
                found[role] = free[0]
    guessed = set()
    for role in needed:
        free = [name for name in names if name not in found.values()]
        likely = [name for name in free if _looks_like(role, [values.get(name) for values in sample])]
        if role not in found and len(likely) == 1:
            found[role] = likely[0]
            guessed.add(role)
    missing = [role for role in needed if role not in found]
    if missing:
        way = f"name it with --columns {missing[0]}=COLUMN" if needed == NEEDED else f"call it `{missing[0]}`"
        raise ConfigError(f"{path}: no column can be told to hold the {missing[0]}; it has {_listed(names)}; {way}")
    return found, frozenset(guessed)


def _looks_like(role: Role, values: Sequence[Any]) -> bool:
    texts = [str(value).strip() for value in values if value not in (None, "")]
    if not texts:
        return False
    if role == "image":
        fitting = sum(text.lower().endswith(_IMAGE_ENDINGS) for text in texts)
    elif role == "question":
        fitting = sum(text.endswith("?") for text in texts)
    else:
        return True
    return fitting >= _LIKELY * len(texts)


def _read(path: Path) -> _Raw:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; expected a file of questions") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 at byte {error.start}; save it again as UTF-8 (of a spreadsheet: `CSV UTF-8`)"
        ) from None
    if text.lstrip()[:1] == "[":
        return _objects("a JSON array", list(_array(path, text)))
    if text.lstrip()[:1] == "{":
        return _objects("JSON lines", list(_lines(path, text)))
    return _cells(path, text)


def _objects(kind: str, records: list[tuple[str, Mapping[str, Any]]]) -> _Raw:
    return _Raw(kind, list(dict.fromkeys(name for _, values in records[:_LOOKED_AT] for name in values)), records)


def _array(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, value in enumerate(_parsed(path, text, "the file"), start=1):
        yield f"entry {number}", _object(path, value, f"entry {number}")


def _lines(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", _object(path, _parsed(path, line, f"line {number}"), f"line {number}")


def _parsed(path: Path, text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        over_lines = text.strip() == "{"
        whole = "; an object over several lines is no row: write one on each line, or an array" if over_lines else ""
        raise DataError(f"{path}: {place}: not JSON: {error}{whole}") from None


def _object(path: Path, value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{path}: {place}: expected an object with image, question and answer, got {str(value)[:40]}")
    return value


def _cells(path: Path, text: str) -> _Raw:
    separator = _separator(path, text)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    previous = csv.field_size_limit(LONGEST_LINE)
    try:
        found = [(rows.line_num, [cell.strip() for cell in cells]) for cells in rows if any(map(str.strip, cells))]
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num}: not a row of cells: {error}") from None
    finally:
        csv.field_size_limit(previous)
    if not found:
        return _Raw("empty", [], [])
    header = found[0][1]
    kind = f"cells between {_SEPARATORS[separator]}"
    if _is_data(header):
        kind, header = f"{kind}, without a header line", [f"column {number + 1}" for number in range(len(header))]
    else:
        found = found[1:]
    if len(set(header)) != len(header):
        raise DataError(f"{path}: line 1: two columns of one name; found {_listed(header)}")
    for line, cells in found:
        if len(cells) != len(header):
            raise DataError(f"{path}: line {line}: {len(cells)} cells; expected {len(header)}, as in the first line")
    return _Raw(kind, header, [(f"line {line}", dict(zip(header, cells, strict=True))) for line, cells in found])


def _separator(path: Path, text: str) -> str:
    """What cuts the first line into most cells; tabs in a .tsv."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    if path.suffix.lower() == ".tsv":
        return "\t"
    return max(_SEPARATORS, key=first.count)


def _is_data(cells: Sequence[str]) -> bool:
    """Whether a first line is no header, but a row already: it names an image file, or asks something."""
    return any(cell.lower().endswith(_IMAGE_ENDINGS) or cell.endswith("?") for cell in cells)


def _asked(place: str, values: Mapping[str, Any], columns: Mapping[Role, str]) -> Asked:
    texts = {role: _text(values.get(column)) for role, column in columns.items()}
    return Asked(
        place, texts["image"], texts["question"], texts.get("answer") or None, texts.get("question_id") or None
    )


def _text(value: Any) -> str:
    """A value as a text; of a list, as of several annotators, the most frequent entry, the first of equals."""
    if isinstance(value, list):
        return Counter(map(_text, value)).most_common(1)[0][0] if value else ""
    if isinstance(value, dict):
        return _text(value.get("answer"))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else " ".join(str(value).split())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
