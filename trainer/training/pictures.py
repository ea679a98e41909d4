"""The same few validation questions at every validation: where the model looks, and what it answers."""

import logging
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from model.build import BuiltModel
from model.pnp.viewer import Viewer
from shards.format.images import as_rgb, decode_image
from shards.read.eyes import square_image
from shards.read.micro_batches import Split
from trainer.build import build_viewer, image_size, open_split
from trainer.config import RunConfig
from trainer.reporting.overlays import answer_directly, picture
from trainer.reporting.recorders import Recorders

logger = logging.getLogger(__name__)


class Shown(NamedTuple):
    """A question that is drawn."""

    image: Image.Image
    pixels: torch.Tensor
    """(1, 3, S, S) uint8"""
    question: str
    gold: str | None


class Pictures:
    """Draws a fixed set of questions with a model in training.

    Args:
        viewer: looks with the model that trains.
        shown: what to draw.
    """

    def __init__(self, built: BuiltModel, viewer: Viewer, shown: list[Shown], device: torch.device) -> None:
        self._built, self._viewer, self._shown, self._device = built, viewer, shown, device

    def record(self, recorder: Recorders, step: int) -> None:
        """Draw all of them; the model is in evaluation mode, with whole weights. After a failure nothing more is drawn.

        The other ranks wait for this one, and no picture is worth a run.
        """
        try:
            self._draw(recorder, step)
        except Exception as error:
            logger.warning("no more pictures: %s: %s", type(error).__name__, error, exc_info=True)
            self._shown = []

    def _draw(self, recorder: Recorders, step: int) -> None:
        for number, shown in enumerate(self._shown):
            pixels = shown.pixels.to(self._device)
            (answered,) = answer_directly(self._built, pixels, [shown.question])
            alone = torch.zeros(1, dtype=torch.int64)
            found = self._viewer.look(pixels, [shown.question], alone, [answered.text])
            asked = shown.question if shown.gold is None else f"{shown.question}  ({shown.gold})"
            recorder.picture(step, f"val/question_{number + 1}", picture(shown.image, found, asked, answered))


def build_pictures(config: RunConfig, built: BuiltModel, device: torch.device) -> Pictures | None:
    """The pictures of a run; None where none are asked for, or the recipe has not what they are made of."""
    wanted = config.logging.pictures if config.logging.tensorboard and config.data.val is not None else 0
    if wanted == 0 or not isinstance(built, BuiltModel) or not {"answer", "itm"} <= built.objective.parts.keys():
        return None
    layers = len(built.objective.tower("match").text_encoder.encoder.layer)
    if layers < 2:
        logger.info("no pictures: the matching text encoder has a single layer, and a heatmap needs one behind it")
        return None
    viewer = build_viewer(config, built, device, needs_masks=False)  # no picture is worth a run
    return Pictures(built, viewer, list(_chosen(open_split(config, "val"), wanted, image_size(config, built))), device)


def _chosen(split: Split, wanted: int, size: int):
    """One question of each of some images, spread over the split: another one each time, so that types vary."""
    images = np.flatnonzero(split.visits.num_questions)
    places = np.unique(np.linspace(0, len(images) - 1, num=min(wanted, len(images))).round().astype(int))
    for number, image in enumerate(images[places].tolist()):
        questions, where = split.reader.sample(image).questions, split.reader.describe(image)
        question = questions[number % len(questions)]
        decoded = decode_image(split.reader.images(image)[0], where).image
        yield Shown(as_rgb(decoded), square_image(decoded, size)[None], question.question, question.answer)
