"""A build of the small corpus, what it leaves, and how its input and its output are tampered with."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.corpora import SMALL_SHARD, Corpus


def arguments(corpus: Corpus, out: Path, **changes) -> dict:
    return {
        "format": "gqa",
        "questions": [corpus.questions],
        "images": corpus.images,
        "out": out,
        "shard_bytes": SMALL_SHARD,
        **changes,
    }


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def some_image(corpus: Corpus, ending: str) -> Path:
    return sorted(corpus.images.glob(f"*{ending}"))[0]


def edit_questions(corpus: Corpus, change) -> None:
    records = json.loads(corpus.questions.read_text())
    change(records)
    corpus.questions.write_text(json.dumps(records))


def make_read_only(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing inside a directory be made, moved or removed, for root as well."""

    def refusing(change: Callable) -> Callable:
        def guarded(path: str | Path, *more: object, **options: object) -> object:
            if isinstance(path, (str, Path)) and directory in Path(path).parents:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return change(path, *more, **options)

        return guarded

    for name in ("mkdir", "rmdir", "unlink", "replace", "rename"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
