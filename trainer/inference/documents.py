"""`duoflow answer` with a reader of words: one question about all pages of a document of some shards."""

from pathlib import Path
from typing import NamedTuple

from shards.annotations import reader_of
from shards.errors import ConfigError
from shards.format.documents import Document
from shards.format.index import read_index
from shards.format.tar_reader import ShardReader
from shards.read.photo import check_question
from shards.remote.files import open_files
from trainer.config import RunConfig
from trainer.config.faults import without_words
from trainer.export.read import load_exported, read_run
from trainer.inference.asking import Asking
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
        run: the directory of a run with an export, or of an export, of a reader.
        shards: directory or URL of shards whose pages have words.
        name: of the document.

    Raises:
        UserError: the question, the document or the run cannot be used.
    """
    asked, config = check_question(question), read_run(run)
    document, where = find_document(config, shards, name)
    return DocumentAnswered(*Asking(load_exported(run, config), run).answer_document(document, where, asked))


def find_document(config: RunConfig, shards: str, name: str) -> tuple[Document, str]:
    """The document of this name, and what to call it in a message.

    Raises:
        UserError: there is none in these shards, or they have no words.
    """
    index = read_index(shards)
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
