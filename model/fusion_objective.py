"""The objective over fused images: pixels and questions in, one loss out. It is the module that the engine trains.

Its registered children are exactly the trained parts. Frozen towers hang on it as plain references, so that the engine
neither shards, casts, broadcasts nor saves them; gradients still flow through them to the fusion encoder.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.config import GuidanceConfig, Tower
from model.looking.guidance import look
from model.looking.second_stream import cells_to_map
from model.objective import EvaluationOutput, FrozenApart, StepOutput
from model.parts import PARTS
from model.parts.answer import AnswerPart
from model.parts.seam import Part, Read
from model.precision import T5_IS_WIDE, t5_dtype
from model.rows import Grouping
from model.towers.answer_towers import AnswerTower, T5AnswerTower
from model.towers.lxmert import LxmertTower
from model.towers.match_tower import MatchTower
from model.towers.vision import VisionTower
from shards.read.collate import Batch, CachedTokens, SeenFeatures, Shown


class Towers(NamedTuple):
    """The parts around the fusion encoder; None where the recipe uses none."""

    vision: VisionTower
    second_stream: nn.Module | None
    """(B, 3, S, S) uint8 to a (B, C, h, w) map."""
    match: MatchTower | LxmertTower | None
    answer: AnswerTower | None


class WeightedPart(NamedTuple):
    """A part of the loss as a recipe has it."""

    part: Part
    weight: float
    block: str
    """The block of text that it reads, by name."""
    tower: str
    """The tower that reads it."""


class FusionObjective(FrozenApart):
    """The parts of a loss over texts that read fused image tokens.

    Args:
        fusion: (tokens (B, N, D), map (B, C, h, w) or None) to (B, N, D') fused tokens.
        towers: built parts; those named in `freeze` are frozen here and kept unregistered.
        freeze: parts that are not trained.
        adapters: trained leaf modules inside of frozen parts, by part.
        parts: the loss, in the order of PARTS.
        sum_names: what is summed over items in every micro-batch, so that any number of ranks and steps merges
            exactly: the sums of all parts that a task may have, 0 for those that a recipe leaves out.
        guidance: how a question looks, where the second stream is an EfficientSamMaskStream.
    """

    def __init__(
        self,
        fusion: nn.Module,
        towers: Towers,
        *,
        freeze: Iterable[Tower],
        adapters: Mapping[str, nn.Module] | None = None,
        parts: Mapping[str, WeightedPart],
        sum_names: Sequence[str],
        guidance: GuidanceConfig | None = None,
    ) -> None:
        super().__init__()
        self.fusion, self.sight, self._guidance = fusion, towers.vision, guidance
        self.parts, self.sum_names = dict(parts), tuple(sum_names)
        frozen = set(freeze)
        for name, tower in towers._replace(vision=towers.vision.module)._asdict().items():
            if tower is None:
                continue
            if name in frozen:
                self._frozen[name] = tower.eval().requires_grad_(False)
            else:
                self.add_module(name, tower.requires_grad_(True))
        if adapters:
            self.lora = nn.ModuleDict({name: leaves.requires_grad_(True) for name, leaves in adapters.items()})
        heads = {name: entry.part.head for name, entry in self.parts.items() if entry.part.head is not None}
        if heads:
            self.heads = nn.ModuleDict(heads)
        self.train()  # `from_pretrained` gives towers in evaluation mode, and adapters lie in towers that are frozen

    def tower(self, name: str) -> nn.Module | None:
        """A tower by name, frozen or trained; None when the recipe has none."""
        return self._frozen[name] if name in self._frozen else self._modules.get(name)

    def is_frozen(self, name: Tower) -> bool:
        """Whether there is a tower of that name, and nothing in it is trained."""
        return name in self._frozen and name not in self.adapters

    def frozen_dtype(self, tower: nn.Module, device: torch.device, dtype: torch.dtype) -> torch.dtype:
        """T5's activations leave the range of fp16."""
        too_narrow = isinstance(tower, T5AnswerTower) and dtype == torch.float16
        return t5_dtype(device) if too_narrow else dtype

    @property
    def too_wide_for_fp16(self) -> str | None:
        """T5, if a part of it is trained."""
        trained = "answer" in self._modules or "answer" in self.adapters
        return T5_IS_WIDE if trained and isinstance(self.tower("answer"), T5AnswerTower) else None

    @property
    def starts_gated(self) -> bool:
        """Whether something that is trained starts at zero and holds back the gradients of others for a step."""
        second = getattr(self.tower("second_stream"), "tower", None)
        gated = any(tower.starts_gated for tower in (self.sight, second) if tower is not None)
        return gated or super().starts_gated

    @property
    def is_guided(self) -> bool:
        """Whether the fusion sees other tokens for each question of an image."""
        return self._guidance is not None

    def forward(self, batch: Batch) -> StepOutput:
        """The training loss of a micro-batch."""
        fused, batch = self._see(batch)
        reads = self._reads(fused, batch)
        loss, sums = fused.new_zeros((), dtype=torch.float32), self._no_sums(fused)
        for name, (part, weight, block, _) in self.parts.items():
            output = part.forward(reads[block])
            sums |= zip(PARTS[name].names, output.sums, strict=True)
            loss = loss + weight * output.loss
        return StepOutput(loss * batch.loss_scale, self._stack(sums))

    @torch.no_grad()
    def evaluate(self, batch: Batch, *, probabilities: bool = False) -> EvaluationOutput:
        """The same sums without a graph, and what each part predicts.

        Args:
            probabilities: also give those of written answers, (R,) as `answer_probability`, for another pass through
                the decoder.
        """
        fused, batch = self._see(batch)
        reads = self._reads(fused, batch)
        sums, predictions = self._no_sums(fused), {}
        for name, (part, _, block, _) in self.parts.items():
            sums |= zip(PARTS[name].names, part.forward(reads[block]).sums, strict=True)
            if probabilities and isinstance(part, AnswerPart) and part.writes:
                predicted, predictions["answer_probability"] = part.predict_with_probability(reads[block])
            else:
                predicted = part.predict(reads[block])
            if predicted is not None:
                predictions[name] = predicted
        return EvaluationOutput(self._stack(sums), predictions)

    @torch.no_grad()
    def generate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Generated token ids (Q, T), and the probability (Q,) of each whole answer, its end token included."""
        fused, batch = self._see(batch)
        part, _, block, _ = self.parts["answer"]
        return part.predict_with_probability(self._reads(fused, batch)[block])

    @torch.no_grad()
    def alternatives(self, batch: Batch, count: int) -> list[tuple[Tensor, Tensor]]:
        """Other answers than the generated ones: see `AnswerPart.alternatives`."""
        fused, batch = self._see(batch)
        part, _, block, _ = self.parts["answer"]
        return part.alternatives(self._reads(fused, batch)[block], count)

    @torch.no_grad()
    def classify(self, batch: Batch) -> Tensor:
        """(I, C) logits of the class head."""
        fused, batch = self._see(batch)
        part, _, block, _ = self.parts["classify"]
        return part.predict(self._reads(fused, batch)[block])

    def fuse(self, shown: Shown) -> Tensor:
        """What B images show to (B, N, D) fused tokens, once per image; not for a stream that is guided."""
        return self.fusion(self.image_tokens(shown), self.feature_map(shown))

    def image_tokens(self, shown: Shown) -> Tensor:
        """What B images show to (B, N, D) tokens of the first vision tower, the cells of its grid last."""
        cached, looked_at = _apart(shown, "vision")
        if cached is not None:
            return cached.restored(_dtype(self.sight.module))
        with self._no_grad_if_frozen("vision"):
            return self.sight.encode(looked_at)

    def _reads(self, fused: Tensor, batch: Batch) -> dict[str, Read]:
        """Every block that is there with its reading, which the first part to ask for it makes and the others share."""
        return {
            block: Read(batch.blocks[block], cache(partial(self.tower(tower).read, fused, batch.blocks[block])))
            for _, _, block, tower in self.parts.values()
            if block in batch.blocks
        }

    def _see(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Fused tokens, and the batch whose rows say which of them they read."""
        if self._guidance is None:
            return self.fuse(batch.shown), batch
        return self._fuse_for_each_question(batch), batch.each_item_alone()

    def _fuse_for_each_question(self, batch: Batch) -> Tensor:
        """(Q, N, D) fused tokens: the second stream is weighed by the mask that a question's heatmap leads to."""
        tokens, maps = self.image_tokens(batch.shown), self.feature_map(batch.shown)
        ask = batch.blocks["ask"]
        grouping = Grouping.of(ask.image, num_images=len(maps), rows_per_image=ask.rows_per_image)
        stream, config = self.tower("second_stream"), self._guidance
        found = look(
            self.tower("match"),
            ask.ids,
            ask.mask,
            tokens,
            grouping,
            segmenter=stream.segmenter,
            embeddings=maps,
            config=config,
            num_tokens=ask.tokens,
            prefix=self.sight.prefix,
        )
        weighed = stream.weigh(maps, ask.image, found, config.blend)
        return self.fusion(tokens[ask.image], weighed)

    def feature_map(self, shown: Shown) -> Tensor | None:
        """What B images show to the second stream's map (B, C, h, w); None for a single stream."""
        second_stream = self.tower("second_stream")
        if second_stream is None:
            return None
        cached, looked_at = _apart(shown, "second_stream")
        if cached is not None:
            return cells_to_map(cached.restored(_dtype(second_stream)))
        with self._no_grad_if_frozen("second_stream"):
            return second_stream(looked_at)

    def _no_grad_if_frozen(self, name: str) -> AbstractContextManager:
        return torch.no_grad() if name in self._frozen else nullcontext()

    def _no_sums(self, like: Tensor) -> dict[str, Tensor]:
        return dict.fromkeys(self.sum_names, like.new_zeros((), dtype=torch.float32))

    def _stack(self, sums: dict[str, Tensor]) -> Tensor:
        return torch.stack([sums[name] for name in self.sum_names])


def _apart(shown: Shown, stream: str) -> tuple[CachedTokens | None, Shown | None]:
    """What is cached of a stream, and what its encoder looks at where nothing is."""
    return (getattr(shown, stream), shown.shown) if isinstance(shown, SeenFeatures) else (None, shown)


def _dtype(tower: nn.Module) -> torch.dtype:
    return next(chain(tower.parameters(), tower.buffers())).dtype
