"""Where the objects of an image are: GQA's scene graphs, moved from one large file to a table on disk."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import msgspec

from shards.annotations.json_stream import iterate_members
from shards.annotations.on_disk import OnDisk
from shards.errors import DataError
from shards.format.records import Box


class _Object(msgspec.Struct):
    x: float
    y: float
    w: float
    h: float


class _Scene(msgspec.Struct):
    objects: dict[str, _Object] = {}


class SceneGraphs(OnDisk):
    """Boxes by image id and object id; holds the scenes of a few hundred images in memory, the rest on disk."""

    def __init__(self, path: Path | None, table: Path, advance: Callable[[int], object]) -> None:
        """Read a scene graph file into a SQLite file.

        Args:
            path: GQA's scene graph file; None gives an empty table.
            table: where the SQLite file goes; it must not exist.
            advance: called with the number of bytes read since the last call.

        Raises:
            DataError: broken JSON, or a scene without what a box needs; the message names file and image.
        """
        super().__init__(table)
        self._database.execute("CREATE TABLE scene (image TEXT PRIMARY KEY, boxes BLOB) WITHOUT ROWID")
        if path is not None:
            self._database.execute("BEGIN")
            for image_id, scene in iterate_members(path, advance):
                self._database.execute(
                    "INSERT OR REPLACE INTO scene VALUES (?, ?)", (image_id, _boxes(scene, path, image_id))
                )
            self._database.execute("COMMIT")
        self._scene = lru_cache(maxsize=256)(self._load)

    def boxes(self, image_id: str, objects: dict[str, str]) -> dict[str, Box]:
        """Boxes of a question's objects, by word position; an object that the scene does not have is left out.

        Args:
            image_id: the image.
            objects: word position -> object id.
        """
        if not objects:
            return {}
        scene = self._scene(image_id)
        return {words: scene[name] for words, name in objects.items() if name in scene}

    def _load(self, image_id: str) -> dict[str, Box]:
        row = self._database.execute("SELECT boxes FROM scene WHERE image = ?", (image_id,)).fetchone()
        return msgspec.msgpack.decode(row[0], type=dict[str, Box]) if row else {}


def _boxes(scene: object, path: Path, image_id: str) -> bytes:
    try:
        objects = msgspec.convert(scene, _Scene).objects
    except msgspec.ValidationError as error:
        raise DataError(f"{path}: scene of image {image_id!r}: {error}") from None
    return msgspec.msgpack.encode({name: (box.x, box.y, box.w, box.h) for name, box in objects.items()})
