"""`duoflow answer`: a question about photos through the exported model of a run, and what it looked at."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from shards.atomic import check_writable, write_atomically
from shards.errors import UserError
from shards.read.photo import check_question, read_photo
from trainer.export.read import Pipeline, load_exported, open_keys, read_run
from trainer.inference.asking import Asking
from trainer.inference.doubts import doubts
from trainer.reporting.overlays import Answered, picture

PICTURE_FORMATS = (".png", ".jpg", ".jpeg", ".webp")


class AboutPhotos(NamedTuple):
    """A question that was answered about one photo, or about as many as the model reads at once."""

    photos: tuple[Path, ...]
    answered: Answered
    drawn: Path | None
    """The picture of what was looked at, if one was asked for."""


def answer_photos(
    run: Path,
    photos: Sequence[Path],
    question: str,
    *,
    overlay: Path | None = None,
    pipeline: Pipeline = "direct",
    overrides: Sequence[str] = (),
) -> Iterator[AboutPhotos]:
    """Answer a question about each photo, or about every two of a model that reads two.

    Args:
        run: the directory of a run with an export, or of an export.
        overlay: where to draw what was looked at: heatmap, points, mask, question and answer. A picture for a single
            photo, or a directory, in which each photo has one by its own name.
        pipeline: whose answer.
        overrides: `key=value` where a run leaves a choice.

    Raises:
        UserError: a photo, the question or the run cannot be used; before anything is written.
    """
    asked, shown = check_question(question), [read_photo(photo) for photo in photos]
    pictures = [None] * len(photos) if overlay is None else _pictures(overlay, photos)
    pnp_asked = pipeline == "pnp"
    keys = open_keys(looks=pnp_asked or overlay is not None, pnp=pnp_asked)
    asking = Asking(load_exported(run, read_run(run, overrides, open_keys=keys)), run)
    at_once = asking.photos_per_question or 1
    for start in range(0, len(photos), at_once):
        some = slice(start, start + at_once)
        images, drawn = tuple(shown[some]), pictures[start]
        if pnp_asked:
            answered, found = asking.answer_from_captions(images[0], asked)
        else:
            (answered,) = asking.answers([images], [asked])
            answered = answered._replace(notes=doubts(asking, images, asked, answered))
            found = None if drawn is None else asking.look(images[0], asked, answered.text)
        if drawn is not None:
            _write_picture(drawn, picture(images[0], found, asked, answered, answered.notes))
        yield AboutPhotos(tuple(photos[some]), answered, drawn)


def _pictures(overlay: Path, photos: Sequence[Path]) -> list[Path]:
    """Where what was looked at in each photo is drawn."""
    if overlay.is_dir():
        names = [overlay / f"{photo.stem}.png" for photo in photos]
        twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
        if twice is not None:
            raise UserError(f"--overlay {overlay}: two photos would be {twice}; ask about one of them at a time")
    elif len(photos) > 1:
        raise UserError(
            f"--overlay {overlay}: {len(photos)} photos need a directory that is there; `mkdir -p {overlay}` makes it"
        )
    else:
        names = [overlay]
    for name, photo in zip(names, photos, strict=True):
        _check_overlay(name, photo)
    return names


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
