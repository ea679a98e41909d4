"""`duoflow answer` with a vision-language model: photos or pages, and one question about all of them."""

from collections.abc import Sequence
from pathlib import Path

from shards.read.photo import check_question, read_photo
from trainer.export.read import load_exported, read_run
from trainer.inference.asking import Asking
from trainer.reporting.overlays import Answered


def answer_pages(run: Path, photos: Sequence[Path], question: str, *, overrides: Sequence[str] = ()) -> Answered:
    """Answer a question about images that are shown together.

    Args:
        run: the directory of a run with an export, or of an export, of a vision-language model.
        photos: in the order in which the model sees them.
        overrides: `key=value` where a run leaves a choice.

    Raises:
        UserError: a photo, the question or the run cannot be used.
    """
    asked, shown = check_question(question), tuple(read_photo(photo) for photo in photos)
    (answered,) = Asking(load_exported(run, read_run(run, overrides)), run).answers([shown], [asked])
    return answered
