"""`duoflow answer`: one photo and one question through the exported model of a run, and what it looked at."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from shards.atomic import check_writable, write_atomically
from shards.errors import UserError
from shards.read.photo import check_question, read_photo
from trainer.export.read import Pipeline, load_exported, open_keys, read_run
from trainer.inference.asking import Asking
from trainer.inference.doubts import doubts
from trainer.reporting.overlays import Answered, picture

PICTURE_FORMATS = (".png", ".jpg", ".jpeg", ".webp")


def answer_photo(
    run: Path,
    photo: Path,
    question: str,
    *,
    overlay: Path | None = None,
    pipeline: Pipeline = "direct",
    overrides: Sequence[str] = (),
) -> Answered:
    """Answer a question about a photo.

    Args:
        run: the directory of a run with an export, or of an export.
        overlay: where to write a picture of what was looked at: heatmap, points, mask, question and answer.
        pipeline: whose answer.
        overrides: `key=value` where a run leaves a choice.

    Raises:
        UserError: the photo, the question or the run cannot be used; nothing was written.
    """
    asked, image = check_question(question), read_photo(photo)
    if overlay is not None:
        _check_overlay(overlay, photo)
    pnp_asked = pipeline == "pnp"
    keys = open_keys(looks=pnp_asked or overlay is not None, pnp=pnp_asked)
    asking = Asking(load_exported(run, read_run(run, overrides, open_keys=keys)), run)
    if pnp_asked:
        answered, found = asking.answer_from_captions(image, asked)
    else:
        (answered,) = asking.answers([(image,)], [asked])
        answered = answered._replace(notes=doubts(asking, (image,), asked, answered))
        found = None if overlay is None else asking.look(image, asked, answered.text)
    if overlay is not None:
        _write_picture(overlay, picture(image, found, asked, answered, answered.notes))
    return answered


def _check_overlay(overlay: Path, photo: Path) -> None:
    if overlay.suffix.lower() not in PICTURE_FORMATS:
        raise UserError(f"--overlay {overlay}: ends with {overlay.suffix!r}; expected {', '.join(PICTURE_FORMATS)}")
    if overlay.exists() and overlay.samefile(photo):
        raise UserError(f"--overlay {overlay}: is the photo itself; name another file")
    check_writable("--overlay", overlay)


def _write_picture(path: Path, drawn: Image.Image) -> None:
    target = io.BytesIO()
    try:
        drawn.save(target, Image.registered_extensions()[path.suffix.lower()])
    except (OSError, ValueError, KeyError) as error:  # of the encoder, or there is none of this kind
        width, height = drawn.size
        raise UserError(
            f"--overlay {path}: a picture of {width} x {height} pixels cannot be written as {path.suffix} ({error}); "
            "name a .png"
        ) from error
    write_atomically(path, target.getvalue())
