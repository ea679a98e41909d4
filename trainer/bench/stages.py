"""The stages between an image with questions and their answers, one by one: what the answer benchmark times."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from model.looking.guidance import find_heatmaps, find_masks, find_points, sharpen
from model.looking.points import Point
from model.pnp.captions import Captioner
from model.pnp.fid import Answer, contexts
from model.pnp.viewer import read_alone
from model.rows import Grouping
from shards.read.collate import pad
from trainer.bench.answer_workload import Models
from trainer.reporting.overlays import answer_directly


class Asked:
    """R questions about one image on their way to answers: each stage reads what those before it have found.

    Together the stages compute what `answer_directly`, `Viewer.look` and `PnpPipeline.answer` do.

    Args:
        models: placed where the pixels are.
        captioner: that of the models, or the brief one.
        pixels: (1, 3, S, S) uint8.
        questions: R texts.
    """

    probabilities: Tensor
    """(R,) float32 of the direct answers, on the CPU"""
    heatmaps: Tensor
    """(R, g, g) float32 on the CPU"""
    points: list[list[Point]]
    refined: Tensor
    """(R, g, g): the heatmaps after the masks"""
    captions: list[list[str]]
    answers: list[Answer]
    """T5's"""

    def __init__(self, models: Models, captioner: Captioner, pixels: Tensor, questions: list[str]) -> None:
        self._models, self._captioner, self._pixels, self._questions = models, captioner, pixels, questions
        self._objective, self._guidance = models.built.objective, models.sizes.model.guidance
        self._image_of_row = torch.zeros(len(questions), dtype=torch.int64, device=pixels.device)
        self._grouping = Grouping.of(self._image_of_row, num_images=1, rows_per_image=len(questions))

    def encode(self) -> None:
        """Tokens (1, N, D) of BLIP's vision transformer."""
        self._tokens = self._objective.image_tokens(self._pixels)

    def map_features(self) -> None:
        """EfficientSAM's map (1, K, h, w)."""
        self._maps = self._objective.feature_map(self._pixels)

    def fuse(self) -> None:
        """Fused tokens (1, N, D)."""
        self._fused = self._objective.fusion(self._tokens, self._maps)

    def answer_directly(self) -> None:
        """What the trained model answers by itself."""
        answering = self._models.from_fused
        answering.fused = self._fused
        seen = self._pixels[..., :1, :1]  # collated on the CPU, and no longer needed
        answered = answer_directly(self._models.built._replace(objective=answering), seen, self._questions)
        self.probabilities = torch.tensor([answer.confidence for answer in answered])

    def find_heat(self) -> None:
        """Where the match of image and question comes from."""
        codec = self._models.built.match_codec
        rows, _ = codec.questions(read_alone(self._questions))
        ids, mask = (part.to(self._pixels.device) for part in pad(rows, codec.pad_id))
        tower = self._objective.tower("match")
        prefix = self._objective.sight.prefix
        self.heatmaps = find_heatmaps(tower, ids, mask, self._fused, self._grouping, self._guidance, prefix=prefix)

    def find_points(self) -> None:
        """Points in the hot regions."""
        self.points = find_points(self.heatmaps, self._guidance)

    def find_masks(self) -> None:
        """A mask at the points of each question, and the heatmap that it sharpens."""
        segmenter, grid = self._models.segmenter, self.heatmaps.shape[-1]
        masks, _ = find_masks(segmenter, self._maps, self._image_of_row, self.points, grid)
        self.refined = sharpen(self.heatmaps, masks, self.points, self._guidance)

    def encode_for_captions(self) -> None:
        """Tokens (1, N, D) of the captioner's own vision transformer."""
        self._caption_tokens = self._captioner.image_tokens(self._pixels)

    def write_captions(self) -> None:
        """What is seen in the hot patches."""
        heat, seed = self.refined.to(self._pixels.device), self._models.sizes.pnp.seed
        keys = self._questions  # what is drawn hangs on them, in a group as alone
        self.captions = self._captioner.captions(self._caption_tokens, self._image_of_row, heat, keys, seed=seed)

    def read(self) -> None:
        """What T5 answers from the captions."""
        pnp = self._models.sizes.pnp
        self.answers = self._models.reader.answer(
            self._questions,
            self.captions,
            captions_per_context=pnp.captions_per_context,
            max_tokens=pnp.max_answer_tokens,
            max_context_tokens=pnp.max_context_tokens,
        )

    def context_lengths(self) -> Iterator[int]:
        """Tokens of every context that T5 has read, with the end token."""
        each = self._models.sizes.pnp.captions_per_context
        for question, captions in zip(self._questions, self.captions, strict=True):
            texts = contexts(question, captions, captions_per_context=each)
            ids = self._models.reader_tokenizer(texts, add_special_tokens=False)["input_ids"]
            yield from (len(tokens) + 1 for tokens in ids)


class Stage(NamedTuple):
    """A step on the way to an answer."""

    run: Callable[[Asked], None]
    what: str
    """For a person."""


STAGES: Mapping[str, Stage] = {
    "vision_tower": Stage(Asked.encode, "BLIP's vision transformer"),
    "second_stream": Stage(Asked.map_features, "EfficientSAM's image encoder"),
    "fusion": Stage(Asked.fuse, "DIFNet over both"),
    "direct_answer": Stage(Asked.answer_directly, "question read, answer written, its probability"),
    "heatmap": Stage(Asked.find_heat, "GradCAM through the matching tower"),
    "points": Stage(Asked.find_points, "k-means on the heatmap"),
    "masks": Stage(Asked.find_masks, "EfficientSAM's mask decoder; the heatmap sharpened"),
    "captioner_vision": Stage(Asked.encode_for_captions, "the captioner's own vision transformer"),
    "captions": Stage(Asked.write_captions, "patches drawn, captions written"),
    "reading": Stage(Asked.read, "T5 reads the captions and answers"),
}
"""In the order in which they run."""


class Pipeline(NamedTuple):
    """A way to an answer."""

    stages: tuple[str, ...]
    what: str
    """For a person."""


PIPELINES: Mapping[str, Pipeline] = {
    "direct": Pipeline(
        ("vision_tower", "second_stream", "fusion", "direct_answer"), "the trained model's own answer: the first four"
    ),
    "pnp": Pipeline(tuple(name for name in STAGES if name != "direct_answer"), "PNP-VQA: all but direct_answer"),
}
