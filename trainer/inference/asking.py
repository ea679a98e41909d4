"""Photos and questions, asked of an exported model that stays loaded: one way for every kind of it.

The commands and `import duoflow` stand on this file; a photo here is an RGB image as `read_photo` gives it.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from model.build import BuiltModel
from model.looking.guidance import Look
from model.pnp.pipeline import PnpPipeline
from model.pnp.viewer import Viewer
from model.reader.build import BuiltReader
from model.reader.collation import BLOCK as READER_BLOCK
from model.retrieval.build import BuiltRetrieval
from model.vlm.build import BuiltVlm
from model.vlm.collation import BLOCK as VLM_BLOCK
from model.vlm.collation import own_size
from shards.errors import ConfigError
from shards.format.documents import Document
from shards.read.collate import Batch, collate
from shards.read.collation import SeenVisit
from shards.read.eyes import square_image
from shards.tasks.seam import Block as BlockOfTask
from shards.tasks.seam import Row, Target
from trainer.build import build_pnp, build_viewer, image_size
from trainer.export.read import Exported
from trainer.reporting.overlays import Answered, answer_batch, ask_batch

Photos = tuple[Image.Image, ...]
"""What one question is about."""

_ALONE = torch.zeros(1, dtype=torch.int64)


class Asking:
    """An exported model that is asked.

    Args:
        exported: what was loaded.
        name: what to call it in a message.
    """

    def __init__(self, exported: Exported, name: Path | str) -> None:
        self.exported, self.name = exported, name

    def answers(self, photos: Sequence[Photos], questions: Sequence[str]) -> list[Answered]:
        """An answer to each question about its photos; equal photos side by side are encoded once.

        Args:
            photos: of each question.

        Raises:
            ConfigError: the model does not look at photos, at another number of them, or has learnt no answers.
        """
        if isinstance(self.exported.built, BuiltVlm):
            return [self._written(shown, text) for shown, text in zip(photos, questions, strict=True)]
        self._check_photos(photos)
        if self._classifies:
            return self._classified(photos, questions)
        batch = self._batch(photos, questions)
        return answer_batch(self._fusion, batch)

    def alternatives(self, shown: Photos, question: str, count: int) -> list[Answered]:
        """At most `count` other answers with their probabilities, the most likely first.

        Written ones begin each with another token than the answer; of classes they are all others.

        Raises:
            ConfigError: a vision-language model, of which one answer alone is had; or as `answers`.
        """
        if isinstance(self.exported.built, BuiltVlm):
            raise ConfigError(f"{self.name}: a vision-language model gives one answer, and no alternatives here")
        self._check_photos([shown])
        if self._classifies:
            return self._ranked_classes([shown], [question])[0][1 : count + 1]
        found = self._fusion.objective.alternatives(self._batch([shown], [question]), count)
        decode = self._fusion.answer_codec.decode
        likely = [Answered(decode(ids.tolist())[0], float(probability[0])) for ids, probability in found]
        return sorted(likely, key=lambda one: -one.confidence)

    def fuse(self, photos: Sequence[Image.Image]) -> Tensor:
        """(B, N, D) fused tokens of B photos, on the model's device.

        Raises:
            ConfigError: there is no fusion encoder, or it needs a question.
        """
        self._check_photos([(photo,) for photo in photos], any_number=True)
        if self._fusion.objective.is_guided:
            raise ConfigError(
                f"{self.name}: model.second_stream: efficient_sam_masks fuses an image anew for each question, so that "
                "an image alone has no fused tokens"
            )
        with torch.no_grad():
            return self._fusion.objective.fuse(self._pixels(photos))

    def look(self, photo: Image.Image, question: str, answer: str | None = None) -> Look:
        """Where a question with its answer, or alone, looks: rows of one.

        Raises:
            ConfigError: the run trained no matching tower, from which this is read; or as `answers`.
            DataError: weights of EfficientSAM are damaged.
        """
        self._check_photos([(photo,)])
        return self._viewer.look(self._pixels([photo]), [question], _ALONE, None if answer is None else [answer])

    def answer_from_captions(self, photo: Image.Image, question: str) -> tuple[Answered, Look]:
        """PNP-VQA's answer, and where it looked.

        Raises:
            ConfigError: the recipe names no captioner or reader; or as `look`.
        """
        self._check_photos([(photo,)])
        pixels = self._pixels([photo])
        found = self._pnp.viewer.look(pixels, [question], _ALONE)
        (read,) = self._pnp.answer_from(found, pixels, [question], _ALONE, [question])
        return Answered(read.text, read.confidence, tuple(read.captions)), found

    def answer_document(self, document: Document, where: str, question: str) -> tuple[Answered, str | None]:
        """The answer of a reader to a question about all pages of a document, and the name of the likeliest page.

        Args:
            where: what to call the document in a message.

        Raises:
            ConfigError: the model is no reader.
        """
        built = self.exported.built
        if not isinstance(built, BuiltReader):
            raise ConfigError(f"{self.name}: looks at photos, and reads no words of documents")
        places = tuple(range(len(document.pages)))
        rows = [Row(question, 0, images=places, places=places, weight=0.0)]
        visit = SeenVisit([], {READER_BLOCK: rows}, 1, where, document.pages)
        batch = built.collation.collate([visit], loss_scale=1.0).batch.to(self.exported.device)
        (ids,), (probability,) = built.objective.write(batch)
        (text,) = built.answer_codec.decode([ids.tolist()])
        ranked = built.objective.evaluate(batch).predictions.get("page")
        page = None if ranked is None else document.pages[int(ranked[0, 0])].image_id
        return Answered(text, float(probability)), page

    @property
    def photos_per_question(self) -> int | None:
        """None where a question may be about any number."""
        built = self.exported.built
        return self._block.rows_per_item if isinstance(built, BuiltModel) else None

    @property
    def _fusion(self) -> BuiltModel:
        built = self.exported.built
        assert isinstance(built, BuiltModel), "checked with the photos"
        return built

    @property
    def _classifies(self) -> bool:
        """Whether answers are classes: where none are written, or the recipe says so."""
        parts = self._fusion.objective.parts
        return "classify" in parts and ("answer" not in parts or self._fusion.answers_by == "classify")

    @property
    def _block(self) -> BlockOfTask:
        """What the task says of the texts that are answered."""
        parts = self._fusion.objective.parts
        name = "classify" if self._classifies else "answer"
        return self._fusion.layouts[parts[name].block].block if name in parts else self._fusion.layouts["match"].block

    @cached_property
    def _viewer(self) -> Viewer:
        return build_viewer(self.exported.config, self._fusion, self.exported.device)

    @cached_property
    def _pnp(self) -> PnpPipeline:
        return build_pnp(*self.exported)

    def _check_photos(self, photos: Sequence[Photos], *, any_number: bool = False) -> None:
        built, name = self.exported.built, self.name
        if isinstance(built, BuiltRetrieval):
            raise ConfigError(f"{name}: ranks pages and writes no answers; `duoflow evaluate` ranks those of a split")
        if isinstance(built, BuiltReader):
            raise ConfigError(f"{name}: reads words of documents, and looks at no photo")
        if isinstance(built, BuiltVlm):
            raise ConfigError(f"{name}: is a vision-language model, and has no trained fusion that could look or fuse")
        if built.objective.sight.medium == "regions":
            raise ConfigError(
                f"{name}: its model reads regions of a detector, which a photo does not have; `duoflow evaluate` "
                "answers what is asked in shards"
            )
        wanted = self.photos_per_question
        for shown in photos:
            if len(shown) != wanted and not any_number:
                how = "one at a time" if wanted == 1 else f"{wanted} at a time"
                raise ConfigError(f"--image: {len(shown)} photos, and the model of {name} reads {how}")

    def _pixels(self, photos: Sequence[Image.Image]) -> Tensor:
        size = image_size(self.exported.config, self._fusion)
        return torch.stack([square_image(photo, size) for photo in photos]).to(self.exported.device)

    def _batch(self, photos: Sequence[Photos], questions: Sequence[str]) -> Batch:
        visits = _visits(photos, questions)
        return ask_batch(self._fusion, self._pixels([shown[0] for shown, _ in visits]), [texts for _, texts in visits])

    def _classified(self, photos: Sequence[Photos], questions: Sequence[str]) -> list[Answered]:
        return [ranked[0] for ranked in self._ranked_classes(photos, questions)]

    def _ranked_classes(self, photos: Sequence[Photos], questions: Sequence[str]) -> list[list[Answered]]:
        """The classes of each question, the likeliest first; of soft labels each has a probability of its own."""
        built, visits = self._fusion, _visits(photos, questions)
        block = built.objective.parts["classify"].block
        layout = built.layouts[block]
        pixels = self._pixels([photo for shown, _ in visits for photo in shown])
        rows = [
            {block: [Row(text, item, image) for item, text in enumerate(texts) for image in range(len(shown))]}
            for shown, texts in visits
        ]
        batch, _ = collate(
            list(pixels.cpu()),
            rows,
            {block: replace(layout, targets=False, soft_classes=None)},
            items_per_visit=[len(texts) for _, texts in visits],
            loss_scale=1.0,
            blank=pixels[0].cpu(),
            images_per_visit=[len(shown) for shown, _ in visits],
        )
        logits = built.objective.classify(batch.to(self.exported.device)).float().cpu()
        probabilities = logits.sigmoid() if layout.soft_classes is not None else logits.softmax(dim=-1)
        order = probabilities.argsort(dim=-1, descending=True, stable=True)
        return [
            [Answered(built.classes[number], float(likely[number])) for number in numbers]
            for likely, numbers in zip(probabilities, order.tolist(), strict=True)
        ]

    def _written(self, shown: Photos, question: str) -> Answered:
        built = self.exported.built
        images = [own_size(photo) for photo in shown]
        places = tuple(range(len(images)))
        rows = [Row(question, 0, images=places, places=places, weight=0.0, targets=(Target("", 0.0),))]
        visit = SeenVisit(images, {VLM_BLOCK: rows}, 1, f"{len(images)} photos")
        eyes = built.collation.eyes(None, None)
        made = built.collation.collate([visit], loss_scale=1.0, eyes=eyes, blanks=1, answering=True)
        batch = made.batch.to(self.exported.device)
        written = built.objective.write(batch)
        (text,) = built.answer_codec.decode(written.ids.tolist())
        ranks = built.objective.has_page_head and len(images) > 1
        photo = int(built.objective.pages(batch)[0, 0]) if ranks else None
        return Answered(text, float(written.probability[0]), photo=photo)


def _visits(photos: Sequence[Photos], questions: Sequence[str]) -> list[tuple[Photos, list[str]]]:
    """Questions by what they are about, in their order: neighbours about the same images share them."""
    visits: list[tuple[Photos, list[str]]] = []
    for shown, text in zip(photos, questions, strict=True):
        if visits and all(one is other for one, other in zip(visits[-1][0], shown, strict=False)):
            visits[-1][1].append(text)
        else:
            visits.append((shown, [text]))
    return visits
