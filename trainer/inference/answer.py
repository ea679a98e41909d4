"""`duoflow answer`: one photo and one question through the exported model of a run, and what it looked at."""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from shards.atomic import check_writable, write_atomically
from shards.errors import ConfigError, UserError
from shards.read.eyes import square_image
from shards.read.photo import check_question, read_photo
from trainer.build import build_pnp, build_viewer, image_size
from trainer.export.read import Pipeline, load_exported, open_keys, read_run
from trainer.reporting.overlays import Answered, answer_directly, picture

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
        run: a run directory with an export.
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
    exported = load_exported(run, read_run(run, overrides, open_keys=keys))
    if exported.built.objective.sight.medium == "regions":
        raise ConfigError(
            f"{run}: its model reads regions of a detector, which a photo does not have; `duoflow evaluate` answers "
            "what is asked in shards"
        )
    pixels = square_image(image, image_size(exported.config, exported.built))[None].to(exported.device)
    alone = torch.zeros(1, dtype=torch.int64)
    if pnp_asked:
        pnp = build_pnp(*exported)
        found = pnp.viewer.look(pixels, [asked], alone)
        (read,) = pnp.answer_from(found, pixels, [asked], alone, [asked])
        answered = Answered(read.text, read.confidence, tuple(read.captions))
    else:
        answered = answer_directly(exported.built, pixels, [asked])[0]
        if overlay is None:
            return answered
        viewer = build_viewer(exported.config, exported.built, exported.device)
        found = viewer.look(pixels, [asked], alone, [answered.text])
    if overlay is not None:
        _write_picture(overlay, picture(image, found, asked, answered))
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
