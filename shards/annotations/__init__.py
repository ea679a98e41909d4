"""The annotation formats that shards can be built from: READERS is the only list of them."""

from pathlib import Path

from shards.annotations import gqa, lxmert, mpdocvqa, nlvr2, snli_ve, table, vqa
from shards.annotations.scene_graphs import SceneGraphs
from shards.annotations.seam import Annotation, Beside, Reader
from shards.errors import DataError
from shards.format.documents import Document, ReadQuestion, in_document_order
from shards.format.index import INDEX_NAME, SplitIndex
from shards.format.records import (
    ImageSample,
    Question,
    Scene,
    ScoredQuestion,
    ScoredSample,
    Statement,
    VqaQuestion,
    VqaSample,
)
from shards.remote.address import joined

_QUESTIONS = {"item": Question, "sample": ImageSample}
_STATEMENTS = {"item": Statement, "sample": Scene}
_EVERY_QUESTION = frozenset({"balanced_only", "lowercase_answers"})

READERS: dict[str, Reader] = {
    "gqa": Reader(
        **_QUESTIONS,
        read=gqa.read,
        endings=gqa.ENDINGS,
        expand=gqa.expand,
        beside=lambda paths, table, advance: SceneGraphs(paths[0] if paths else None, table, advance),
        options=_EVERY_QUESTION | {"scene_graphs"},
    ),
    "jsonl": Reader(**_QUESTIONS, read=table.read_jsonl, options=_EVERY_QUESTION),
    "csv": Reader(**_QUESTIONS, read=table.read_csv, options=_EVERY_QUESTION),
    "vqa": Reader(
        item=VqaQuestion,
        sample=VqaSample,
        read=vqa.read,
        endings=vqa.ENDINGS,
        beside=vqa.Annotations,
        options=frozenset({"annotations"}),
    ),
    "snli_ve": Reader(**_STATEMENTS, read=snli_ve.read, endings=snli_ve.ENDINGS),
    "nlvr2": Reader(**_STATEMENTS, read=nlvr2.read, endings=nlvr2.ENDINGS),
    "lxmert": Reader(
        item=ScoredQuestion,
        sample=ScoredSample,
        read=lxmert.read_questions,
        endings=lxmert.ENDINGS,
        settle=lxmert.settle,
    ),
    lxmert.STATEMENTS: Reader(**_STATEMENTS, read=lxmert.read_statements, endings=lxmert.ENDINGS),
    "mpdocvqa": Reader(
        item=ReadQuestion,
        sample=Document,
        read=mpdocvqa.read,
        endings=mpdocvqa.ENDINGS,
        beside=mpdocvqa.PageWords,
        join=in_document_order,
        options=frozenset({"ocr"}),
    ),
}


def reader_of(index: SplitIndex, directory: str | Path) -> Reader:
    """How the annotations of a split were read; `directory` is for the message.

    Raises:
        DataError: it was built from a format that is not known here.
    """
    if index.reader not in READERS:
        raise DataError(
            f"{joined(directory, INDEX_NAME)}: built from format {index.reader!r}; this version knows "
            f"{', '.join(READERS)}: update it, or build the shards again"
        )
    return READERS[index.reader]


__all__ = ["READERS", "Annotation", "Beside", "Reader", "reader_of"]
