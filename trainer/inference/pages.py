"""`duoflow answer` with a vision-language model: photos or pages, and one question about all of them."""

from collections.abc import Sequence
from pathlib import Path

from model.vlm.build import BuiltVlm
from model.vlm.collation import BLOCK, own_size
from shards.read.collation import SeenVisit
from shards.read.photo import check_question, read_photo
from shards.tasks.seam import Row, Target
from trainer.export.read import load_exported, read_run
from trainer.reporting.overlays import Answered


def answer_pages(run: Path, photos: Sequence[Path], question: str, *, overrides: Sequence[str] = ()) -> Answered:
    """Answer a question about images that are shown together.

    Args:
        run: a run directory with an export, of a vision-language model.
        photos: in the order in which the model sees them.
        overrides: `key=value` where a run leaves a choice.

    Raises:
        UserError: a photo, the question or the run cannot be used.
    """
    asked, shown = check_question(question), [own_size(read_photo(photo)) for photo in photos]
    exported = load_exported(run, read_run(run, overrides))
    built = exported.built
    assert isinstance(built, BuiltVlm), "the caller has looked"
    rows = [Row(asked, 0, images=tuple(range(len(shown))), targets=(Target("", 0.0),))]
    visit = SeenVisit(shown, {BLOCK: rows}, 1, ", ".join(map(str, photos)))
    eyes = built.collation.eyes(None, None)
    made = built.collation.collate([visit], loss_scale=1.0, eyes=eyes, blanks=1, answering=True)
    written = built.objective.write(made.batch.to(exported.device))
    (text,) = built.answer_codec.decode(written.ids.tolist())
    return Answered(text, float(written.probability[0]))
