"""A model's own answers with their probabilities, drawn over the image with what was looked at."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image

from model.build import BuiltModel
from model.looking.guidance import Look
from model.looking.points import to_pixels
from model.pnp.overlay import draw_overlay
from shards.errors import ConfigError
from shards.read.collate import Batch, ask


class Answered(NamedTuple):
    """An answer, how sure the model is of it, and the captions that it was read from."""

    text: str
    confidence: float
    """The probability that the model gives the whole answer, end token included."""
    captions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What one should know before believing it."""
    photo: int | None = None
    """Which of several photos shows it, where the model has learnt to say so."""


def answer_directly(built: BuiltModel, pixels: torch.Tensor, questions: Sequence[str]) -> list[Answered]:
    """The trained model's own answers about one image, with their probabilities.

    Args:
        pixels: (1, 3, S, S) uint8 on the model's device.

    Raises:
        ConfigError: the run trained no answers.
    """
    return answer_batch(built, ask_batch(built, pixels, [questions]))


def ask_batch(built: BuiltModel, pixels: torch.Tensor, questions: Sequence[Sequence[str]]) -> Batch:
    """Questions about images, on the device of their pixels.

    Args:
        pixels: (B, 3, S, S) uint8.
        questions: those about each image.

    Raises:
        ConfigError: the run trained no answers.
    """
    if "answer" not in built.objective.parts:
        raise ConfigError("losses.answer: is 0 in this run, so it has learnt no answers; use --pipeline pnp")
    return ask(list(pixels.cpu()), questions, built.layouts["ask"]).to(pixels.device)


def answer_batch(built: BuiltModel, batch: Batch) -> list[Answered]:
    """The trained model's own answers to a batch of questions, in their order."""
    ids, probabilities = built.objective.generate(batch)
    words = built.answer_codec.decode(ids.tolist())
    return [Answered(*pair) for pair in zip(words, probabilities.tolist(), strict=True)]


def picture(
    image: Image.Image, found: Look, question: str, answered: Answered, notes: Sequence[str] = ()
) -> Image.Image:
    """What was looked at for a single question, drawn over its image."""
    heatmap, (points,) = found.refined[0].numpy(), found.points
    mask = None if found.masks is None or not points else found.masks[0].numpy() >= 0.5
    return draw_overlay(
        image,
        heatmap,
        to_pixels(points, heatmap.shape[-1], image.size),
        mask,
        question=question,
        answer=answered.text,
        confidence=answered.confidence if math.isfinite(answered.confidence) else None,
        notes=notes,
    )
