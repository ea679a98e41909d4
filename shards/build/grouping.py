"""Items grouped by sample on disk, so that memory does not grow with their number."""

import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from shards.annotations.seam import Annotation
from shards.errors import DataError

CACHE_MIB = 64
ROWS_AT_ONCE = 2000


class Group(NamedTuple):
    """A sample with its items, each as JSON, sorted by item id."""

    sample_id: str
    refs: tuple[str, ...]
    """The files of its images."""
    items: list[bytes]


_encoder = msgspec.json.Encoder(order="deterministic")
_BETWEEN_REFS = "\0"
"""No file name has one."""


Join = Callable[[Iterable[tuple[str, ...]]], tuple[str, ...]]


class Grouping:
    """A table of questions in a SQLite file: filled in any order, sealed, then read image by image.

    Use as a context manager: the file is closed and removed at the end. Memory: `CACHE_MIB` and a little.
    Disk: the questions as JSON twice, since they are read in the order of one external sort: looked up by an index,
    each would be a random access, which takes 14 hours for half a billion of them.
    """

    def __init__(self, path: Path, join: Join | None = None) -> None:
        """Start an empty table; `path` must not exist. SQLite's own temporary files go beside it.

        Args:
            join: of a sample whose items may be about different images, gives all of them.
        """
        self._path, self._join = path, join
        self._rows: list[tuple[str, str | None, str, int, bytes]] = []
        self._database = sqlite3.connect(path, isolation_level=None)
        folder = str(path.parent.absolute()).replace("'", "''")
        for pragma in (
            "journal_mode=OFF",  # the file is thrown away after a crash
            "synchronous=OFF",
            "locking_mode=EXCLUSIVE",
            f"cache_size=-{CACHE_MIB << 10}",
            "temp_store=FILE",
            f"temp_store_directory='{folder}'",  # /tmp may be small; the index of a large set takes gigabytes
        ):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute("CREATE TABLE question (image TEXT, ref TEXT, id TEXT, source INTEGER, body BLOB)")
        self._database.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._database.execute("PRAGMA temp_store_directory=''")  # it is a setting of the process
        self._database.close()
        self._path.unlink(missing_ok=True)

    def add(self, annotation: Annotation, source: int) -> None:
        """Take in one question.

        Args:
            annotation: the question and its image.
            source: number of the file that it comes from, for messages.

        Raises:
            DataError: the text cannot be stored (half of a surrogate pair).
        """
        sample_id, refs, item = annotation
        try:
            body = _encoder.encode(item)
            sample_id.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"question {item.item_id!a} of image {sample_id!a}: {error}") from None
        ref = None if refs == (sample_id,) else _BETWEEN_REFS.join(refs)
        self._rows.append((sample_id, ref, item.item_id, source, body))
        if len(self._rows) >= ROWS_AT_ONCE:
            self._flush()

    def seal(self, sources: list[Path]) -> int:
        """End the filling: drop identical repetitions of a question and sort by image.

        Args:
            sources: the files by number, for messages.

        Returns:
            The number of questions dropped.

        Raises:
            DataError: a question id occurs twice with different content, or one image id stands for two files where
                all items of a sample are about the same.
        """
        self._flush()
        self._database.execute("CREATE INDEX by_id ON question (id)")
        self._database.execute(
            "CREATE TABLE repeated AS SELECT id FROM question INDEXED BY by_id GROUP BY id HAVING count(*) > 1"
        )
        repeated = self._database.execute("SELECT id FROM repeated")
        dropped = sum(self._drop_repetitions(question_id, sources) for (question_id,) in repeated)
        self._database.execute("DROP TABLE repeated")
        self._database.execute("DROP INDEX by_id")
        self._database.execute(
            "CREATE TABLE sample AS SELECT image, ref FROM question GROUP BY image, ref ORDER BY image, ref"
        )
        self._database.execute("COMMIT")
        if self._join is None:
            self._refuse_two_files()
        return dropped

    def refs(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(sample id, files of its images) of every sample, sorted by id."""
        rows = self._database.execute("SELECT image, ref FROM sample ORDER BY rowid")
        for sample_id, found in groupby(rows, key=itemgetter(0)):
            yield sample_id, self._joined(sample_id, {ref for _, ref in found})

    def groups(self) -> Iterator[Group]:
        """Every sample with its items, sorted by id.

        Raises:
            DataError: the disk has no room to sort them.
        """
        self._check_room()
        rows = self._database.execute("SELECT image, ref, body FROM question ORDER BY image, id")
        for sample_id, found in groupby(rows, key=itemgetter(0)):
            refs, items = set(), []
            for _, ref, body in found:
                refs.add(ref)
                items.append(body)
            yield Group(sample_id, self._joined(sample_id, refs), items)

    def _check_room(self) -> None:
        needed, free = self._path.stat().st_size, shutil.disk_usage(self._path.parent).free
        if free < needed:
            raise DataError(
                f"{self._path.parent}: sorting the questions takes {needed / 1e9:.1f} GB there, and "
                f"{free / 1e9:.1f} GB are free; make room, or choose an --out on another disk"
            )

    def _joined(self, sample_id: str, stored: set[str | None]) -> tuple[str, ...]:
        """The images of a sample."""
        found = [_refs(sample_id, ref) for ref in stored]
        if self._join is not None:
            return self._join(found)
        (refs,) = found
        return refs

    def _flush(self) -> None:
        self._database.executemany("INSERT INTO question VALUES (?, ?, ?, ?, ?)", self._rows)
        self._rows.clear()

    def _drop_repetitions(self, question_id: str, sources: list[Path]) -> int:
        rows = self._database.execute(
            "SELECT rowid, image, ref, body, source FROM question WHERE id = ? ORDER BY rowid", (question_id,)
        ).fetchall()
        first = rows[0]
        for row in rows[1:]:
            if row[1:4] != first[1:4]:
                where = (
                    f"{sources[first[4]]} and {sources[row[4]]}" if first[4] != row[4] else f"{sources[row[4]]}, twice"
                )
                raise DataError(
                    f"question id {question_id!r} occurs with different content (image {first[1]!r} and {row[1]!r}) "
                    f"in {where}; an id must name one question"
                )
            self._database.execute("DELETE FROM question WHERE rowid = ?", (row[0],))
        return len(rows) - 1

    def _refuse_two_files(self) -> None:
        query = (
            "SELECT image, min(coalesce(ref, image)), max(coalesce(ref, image)) FROM sample "
            "GROUP BY image HAVING min(coalesce(ref, image)) <> max(coalesce(ref, image)) LIMIT 1"
        )
        for image_id, *both in self._database.execute(query):
            shown = [" and ".join(map(repr, stored.split(_BETWEEN_REFS))) for stored in both]
            raise DataError(
                f"image id {image_id!r} stands for two files, {shown[0]} and {shown[1]}; an id must name one image"
            )


def _refs(sample_id: str, stored: str | None) -> tuple[str, ...]:
    return (sample_id,) if stored is None else tuple(stored.split(_BETWEEN_REFS))
