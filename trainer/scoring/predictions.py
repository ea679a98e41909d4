"""What a model says to the items of a split, by item id: as many as there are, in a bounded part of memory."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.engine.distributed import World

Json = Any

_CACHE_KIB = 32 << 10
_PIECE_BYTES = 32 << 20
"""Of what all ranks send at a time."""
_SMALLEST_PIECE = 1 << 16
_BY_NUMBER = (
    "id GLOB '*[^0-9]*' OR id = '', "
    "CASE WHEN id GLOB '*[^0-9]*' THEN 0 ELSE length(ltrim(id, '0')) END, "
    "CASE WHEN id GLOB '*[^0-9]*' THEN '' ELSE ltrim(id, '0') END, id"
)
"""Ids that are numbers first, whatever their size."""


class Predictions(Mapping[str, Json]):
    """Values by item id, iterated in the order of their ids.

    They lie in a database that has no name: in memory up to 32 MB, beyond that in a file of the temporary directory,
    which is gone with this object.
    """

    def __init__(self, values: Mapping[str, Json] | None = None) -> None:
        # Evaluations of several ranks in one process, as in tests, are compared by the thread that began them.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        self._database.execute("CREATE TABLE said (id TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
        self.update(values or {})

    def update(self, values: Mapping[str, Json]) -> None:
        """Take in values; one that is known already is replaced."""
        self._database.execute("BEGIN")
        self._database.executemany(
            "INSERT OR REPLACE INTO said VALUES (?, ?)",
            ((name, json.dumps(value, ensure_ascii=False)) for name, value in values.items()),
        )
        self._database.execute("COMMIT")

    def __getitem__(self, name: str) -> Json:
        found = self._database.execute("SELECT value FROM said WHERE id = ?", (name,)).fetchone()
        if found is None:
            raise KeyError(name)
        return json.loads(found[0])

    def __iter__(self) -> Iterator[str]:
        return (name for (name,) in self._database.execute("SELECT id FROM said ORDER BY id"))

    def __len__(self) -> int:
        return self._database.execute("SELECT count(*) FROM said").fetchone()[0]

    def ordered(self, order: str = "id") -> Iterator[tuple[str, Json]]:
        """(id, value) of all, one at a time."""
        rows = self._database.execute(f"SELECT id, value FROM said ORDER BY {order}")
        return ((name, json.loads(value)) for name, value in rows)


def by_id(predictions: Mapping[str, Json]) -> Iterator[tuple[str, Json]]:
    """(id, value) of all, by id."""
    return _kept(predictions).ordered()


def by_number(predictions: Mapping[str, Json]) -> Iterator[tuple[str, Json]]:
    """(id, value) of all: ids that are numbers by their size, then the others by id."""
    return _kept(predictions).ordered(_BY_NUMBER)


def _kept(predictions: Mapping[str, Json]) -> Predictions:
    return predictions if isinstance(predictions, Predictions) else Predictions(predictions)


def gather(own: Mapping[str, Json], world: "World") -> Predictions | None:
    """Those of all ranks on rank 0, elsewhere None: sent in pieces, so that no rank holds all of them; collective."""
    predictions = _kept(own)
    if world.world_size == 1:
        return predictions
    everything = Predictions() if world.rank == 0 else None
    pieces = _pieces(predictions.ordered(), max(_PIECE_BYTES // world.world_size, _SMALLEST_PIECE))
    piece = next(pieces, None)
    while world.any_rank(piece is not None):
        for part in world.gather_text(json.dumps(piece or {})) or ():
            everything.update(json.loads(part))
        piece = next(pieces, None)
    return everything


def _pieces(entries: Iterable[tuple[str, Json]], size: int) -> Iterator[dict[str, Json]]:
    """Entries in pieces of about so many bytes."""
    piece: dict[str, Json] = {}
    length = 0
    for name, value in entries:
        piece[name] = value
        length += len(name) + len(json.dumps(value))
        if length >= size:
            yield piece
            piece, length = {}, 0
    if piece:
        yield piece
