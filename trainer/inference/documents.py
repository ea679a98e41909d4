"""`duoflow answer` with a reader of words: one question about all pages of a document of some shards."""

from pathlib import Path
from typing import NamedTuple

from model.reader.build import BuiltReader
from model.reader.collation import BLOCK
from shards.annotations import reader_of
from shards.errors import ConfigError
from shards.format.documents import Document
from shards.format.index import SplitIndex, read_index
from shards.format.tar_reader import ShardReader
from shards.read.collation import SeenVisit
from shards.read.photo import check_question
from shards.remote.files import open_files
from shards.tasks.seam import Row
from trainer.config import RunConfig
from trainer.config.faults import without_words
from trainer.export.read import load_exported, read_run
from trainer.reporting.overlays import Answered
from trainer.training.preflight import check_format


class DocumentAnswered(NamedTuple):
    """An answer, and where it stands."""

    answered: Answered
    page: str | None
    """The name of the most likely page; None where the run learnt no pages."""


def answer_document(run: Path, shards: str, name: str, question: str) -> DocumentAnswered:
    """Answer a question about a document.

    Args:
        run: a run directory with an export, of a reader.
        shards: directory or URL of shards whose pages have words.
        name: of the document.

    Raises:
        UserError: the question, the document or the run cannot be used.
    """
    asked, config = check_question(question), read_run(run)
    index = read_index(shards)
    document, where = _document(config, index, shards, name)
    exported = load_exported(run, config)
    built = exported.built
    assert isinstance(built, BuiltReader), "the caller has looked"
    places = tuple(range(len(document.pages)))
    visit = SeenVisit([], {BLOCK: [Row(asked, 0, images=places, places=places, weight=0.0)]}, 1, where, document.pages)
    batch = built.collation.collate([visit], loss_scale=1.0).batch.to(exported.device)
    (ids,), (probability,) = built.objective.write(batch)
    (text,) = built.answer_codec.decode([ids.tolist()])
    ranked = built.objective.evaluate(batch).predictions.get("page")
    page = None if ranked is None else document.pages[int(ranked[0, 0])].image_id
    return DocumentAnswered(Answered(text, float(probability)), page)


def _document(config: RunConfig, index: SplitIndex, shards: str, name: str) -> tuple[Document, str]:
    """The document of this name, and what to call it in a message."""
    check_format(config.task, index, "--shards", shards)
    if not index.has_words:
        raise ConfigError(f"--shards: {without_words(shards)}")
    names = [document for shard in index.shards for document in shard.image_ids]
    if name not in names:
        raise ConfigError(
            f"--document: {name}: {shards} has no such document; it has {len(names):,}, such as {names[0]}"
        )
    files = open_files(shards, index.shards, config.data.cache)
    reader, number = ShardReader(shards, index, reader_of(index, shards).sample, files), names.index(name)
    return reader.sample(number), reader.describe(number)
