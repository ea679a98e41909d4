"""A run or an export, loaded: it answers, looks and fuses.

Shapes: B photos, N tokens of a photo (class token first), D their width.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from PIL import Image
from torch import Tensor

from duoflow.answers import Alternative, Answer, ImageLike, Looked, as_photo, looked
from duoflow.overrides import Overrides, as_overrides
from shards.read.photo import check_question
from trainer.export.read import load_exported, open_keys, read_run
from trainer.inference.asking import Asking
from trainer.inference.documents import find_document
from trainer.inference.doubts import doubts
from trainer.inference.many import answer_many
from trainer.reporting.overlays import Answered, picture

if TYPE_CHECKING:
    from model.looking.guidance import Look

Precision = Literal["auto", "fp32", "bf16", "fp16"]

ALTERNATIVES = 5
"""At most so many of an answer."""


def load(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    precision: Precision | None = None,
    overrides: Overrides = (),
) -> "Model":
    """Load a run's best weights, or an export. Every file of it is compared with its digest first.

    Args:
        path: the directory of a run (`runs/NAME`), or of an export.
        device: such as `cuda:1` or `cpu`; None is the GPU that is there, else the CPU.
        precision: None is that of the recipe; `auto` is fp16 on a GPU and fp32 without.
        overrides: what a run leaves open, as `{"model.guidance.num_points": 2}` or `["model.guidance.num_points=2"]`;
            also where a frozen checkpoint lies here (`model.vision`).

    Raises:
        UserError: there is nothing to load, it is damaged, or something that it needs is not here.
    """
    given = [*as_overrides(overrides), *([f"precision={precision}"] if precision is not None else [])]
    config = read_run(Path(path), given, open_keys=open_keys(looks=True, pnp=True, chooses=True))
    place = None if device is None else torch.device(device)
    return Model(Asking(load_exported(Path(path), config, device=place), path))


class Model:
    """A trained model at work; `load` gives one."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._asking.exported.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in; T5 stays out of float16."""
        return self._asking.exported.dtype

    @property
    def task(self) -> str:
        """What it was trained for: a row of `duoflow tasks`."""
        return self._asking.exported.config.task

    def answer(
        self,
        photo: ImageLike | Sequence[ImageLike],
        question: str,
        *,
        pipeline: Literal["direct", "pnp"] = "direct",
    ) -> Answer:
        """Answer a question about a photo, or about several where the model reads several.

        Args:
            pipeline: `pnp` lets T5 answer from captions of what the heatmap points at (`pnp.captioner`, `pnp.reader`).

        Raises:
            UserError: a photo or the question cannot be used, or this model does not answer so.
        """
        photos, asked = _photos(photo), check_question(question)
        if pipeline == "pnp":
            answered, found = self._asking.answer_from_captions(as_photo(photos[0]), asked)
            return self._given(photos, asked, answered, found)
        (answered,) = self._asking.answers([tuple(map(as_photo, photos))], [asked])
        return self._given(photos, asked, answered)

    def answer_many(
        self, asked: Iterable[tuple[ImageLike | Sequence[ImageLike], str]], *, batch_size: int = 32
    ) -> Iterator[Answer]:
        """Answer (photo, question) pairs, in their order, as they come: a file of any length passes through.

        Neighbours about the same photo read and encode it once. Batches change the order of sums: a probability may
        differ from that of `answer` in its last digits.

        Args:
            batch_size: questions computed at a time.

        Raises:
            UserError: as `answer`; the message names the photo.
        """
        pairs = ((_photos(photo), question) for photo, question in asked)
        for one in answer_many(self._asking, pairs, open_photo=as_photo, batch_size=batch_size):
            yield self._given(*one)

    def answer_document(self, shards: str | Path, document: str, question: str) -> Answer:
        """Answer a question about the words of all pages of a document of some shards, with a reader of words.

        Raises:
            UserError: this model reads no words, or there is no such document.
        """
        asked = check_question(question)
        found, where = find_document(self._asking.exported.config, str(shards), document)
        answered, _ = self._asking.answer_document(found, where, asked)
        return Answer(asked, answered.text, answered.confidence)

    def fuse(self, photos: Sequence[ImageLike]) -> Tensor:
        """(B, N, D) fused tokens, on the model's device and in its precision, without a gradient.

        Raises:
            UserError: a photo cannot be used, or the model has no fusion encoder that reads photos alone.
        """
        return self._asking.fuse([as_photo(photo) for photo in photos])

    def look(self, photo: ImageLike, question: str, answer: str | None = None) -> Looked:
        """Where a question looks, read with its answer if there is one.

        Raises:
            UserError: a photo or the question cannot be used, or the run trained nothing that this is read from.
        """
        image = as_photo(photo)
        return looked(self._asking.look(image, check_question(question), answer), image.size)

    def overlay(self, answer: Answer) -> Image.Image:
        """The photo of an answer with what was looked at: heat, points, mask, question and answer.

        Raises:
            UserError: as `look`.
        """
        said = Answered(answer.text, answer.probability)
        return picture(answer.photo, answer.found, answer.question, said, answer.notes)

    def alternatives(self, answer: Answer, count: int = ALTERNATIVES) -> tuple[Alternative, ...]:
        """At most `count` other answers to the question of an answer, the most likely first.

        Raises:
            UserError: the model gives none.
        """
        shown = tuple(map(as_photo, answer.photos))
        found = self._asking.alternatives(shown, answer.question, count)
        return tuple(Alternative(one.text, one.confidence) for one in found)

    def _given(
        self, photos: tuple[ImageLike, ...], question: str, answered: Answered, found: "Look | None" = None
    ) -> Answer:
        def find(answer: Answer) -> "Look":
            return self._asking.look(answer.photo, question, answer.text) if found is None else found

        def doubt(answer: Answer) -> tuple[str, ...]:
            return doubts(
                self._asking, tuple(map(as_photo, photos)), question, Answered(answer.text, answer.probability)
            )

        return Answer(
            question, answered.text, answered.confidence, answered.captions, photos, find, self.alternatives, doubt
        )

    def __repr__(self) -> str:
        return f"<duoflow.Model {self._asking.name} on {self.device}, {self.dtype}>"


def _photos(photo: ImageLike | Sequence[ImageLike]) -> tuple[ImageLike, ...]:
    return tuple(photo) if isinstance(photo, Sequence) and not isinstance(photo, str) else (photo,)
