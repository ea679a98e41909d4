"""The objective of Hi-VT5: the encoder reads each page with the question, the decoder reads the page tokens of all.

Its registered children are T5 where it is trained whole, the leaves of adapters, and what a reader has beside T5; a
frozen T5 hangs on it unregistered.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.objective import EvaluationOutput, FrozenApart, StepOutput
from model.parts.answer import AnswerPart
from model.parts.page import page_loss, ranking
from model.parts.seam import Read, weighed
from model.precision import T5_IS_WIDE, t5_dtype
from model.reader.batch import ReaderBatch
from model.reader.pages import BoxEmbeddings, PageHead, PageTokens
from model.towers.answer_towers import T5AnswerTower
from model.towers.reading import Reading
from shards.read.collate import Targets

TOWER = "answer"
"""What T5 is called, in `freeze`, in `lora` and in checkpoints."""


class Beside(NamedTuple):
    """What a reader trains beside T5."""

    boxes: BoxEmbeddings | None
    page_tokens: PageTokens | None
    """None where T5 is trained whole: then they are rows of its own embeddings."""
    head: PageHead | None
    """None without a loss on pages."""


class Asked(NamedTuple):
    """Questions, as the answer part takes a block: `mask` is that of the page tokens that the decoder reads."""

    mask: Tensor
    targets: Targets


class ReaderObjective(FrozenApart):
    """A loss on answers, and one on the page that shows them, each summed with its weights.

    Args:
        tower: T5; frozen here and kept unregistered if `frozen`.
        adapters: trained leaf modules inside of a frozen T5; None without.
        beside: what is trained in any case.
        page_tokens: T, in front of each page.
        part: what the decoder learns.
        weights: of the parts.
        sum_names: see `Objective.sum_names`; those of the two parts are filled.
    """

    too_wide_for_fp16 = T5_IS_WIDE
    """Even where it is frozen: the gradients of the page tokens pass it."""

    def __init__(
        self,
        tower: T5AnswerTower,
        *,
        frozen: bool,
        adapters: nn.Module | None,
        beside: Beside,
        page_tokens: int,
        part: AnswerPart,
        weights: Mapping[str, float],
        sum_names: Sequence[str],
    ) -> None:
        super().__init__()
        if frozen:
            self._frozen[TOWER] = tower.eval().requires_grad_(False)
        else:
            self.add_module(TOWER, tower.requires_grad_(True))
        if adapters is not None:
            self.lora = nn.ModuleDict({TOWER: adapters.requires_grad_(True)})
        self.boxes, self.page_tokens = beside.boxes, beside.page_tokens
        self.heads = nn.ModuleDict({} if beside.head is None else {"page": beside.head})
        self._num_page_tokens, self._part, self._weights = page_tokens, part, dict(weights)
        self.sum_names = tuple(sum_names)
        self.train()

    @property
    def tower(self) -> T5AnswerTower:
        """T5, frozen or trained."""
        return self._frozen[TOWER] if TOWER in self._frozen else self.get_submodule(TOWER)

    def frozen_dtype(self, tower: nn.Module, device: torch.device, dtype: torch.dtype) -> torch.dtype:  # noqa: ARG002
        """T5's activations leave the range of fp16."""
        return t5_dtype(device) if dtype == torch.float16 else dtype

    def forward(self, batch: ReaderBatch) -> StepOutput:
        """The training loss of a micro-batch."""
        loss, sums = self._losses(batch, self.read(batch))
        return StepOutput(loss * batch.loss_scale, sums)

    @torch.no_grad()
    def evaluate(self, batch: ReaderBatch) -> EvaluationOutput:
        """The same sums without a graph; `answer`: (Q, T) token ids of what is written; `page`: (Q, P) the places of
        the pages that were read, the most likely first, then -1."""
        pages = self.read(batch)
        _, sums = self._losses(batch, pages)
        predictions = {"answer": self._part.predict(self._asked(batch, pages))}
        if self.heads:
            predictions["page"] = ranking(self.page_logits(batch, pages))
        return EvaluationOutput(sums, predictions)

    @torch.no_grad()
    def write(self, batch: ReaderBatch) -> tuple[Tensor, Tensor]:
        """(Q, T) token ids of the answers, and the probability (Q,) of each, its end included."""
        return self._part.predict_with_probability(self._asked(batch, self.read(batch)))

    def read(self, batch: ReaderBatch) -> Tensor:
        """(E, page tokens, D): what stands for each page, read with its question."""
        readings, model = batch.readings, self.tower.model
        words = model.shared(readings.ids)
        if self.page_tokens is not None:
            words = self.page_tokens(words)
        if self.boxes is not None:
            words = words + self.boxes(readings.boxes).to(words.dtype)
        states = model.encoder(inputs_embeds=words, attention_mask=readings.mask.long()).last_hidden_state
        return states[:, : self._num_page_tokens]

    def page_logits(self, batch: ReaderBatch, pages: Tensor) -> Tensor:
        """(Q, P) float32: how likely each page shows the answer; -inf where none was read.

        Args:
            pages: of `read`.
        """
        head = self.heads["page"]
        readings = batch.readings
        return head(pages.to(head.linear.weight.dtype), readings.question, readings.place, len(batch.mask))

    def states(self, batch: ReaderBatch, pages: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder reads, (Q, W x page tokens, D), and where there is something to read: (Q, W x page tokens)
        bool.

        Args:
            pages: of `read`.
        """
        laid = pages.new_zeros(*batch.mask.shape, *pages.shape[1:])
        laid = laid.index_put((batch.readings.question, batch.readings.column), pages)
        return laid.flatten(1, 2), batch.mask.repeat_interleave(pages.shape[1], dim=1)

    def _asked(self, batch: ReaderBatch, pages: Tensor) -> Read:
        states, mask = self.states(batch, pages)
        return Read(Asked(mask, batch.targets), lambda: Reading(states, None))

    def _losses(self, batch: ReaderBatch, pages: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted loss, and the sums by `sum_names`."""
        outputs = {"answer": self._part.forward(self._asked(batch, pages))}
        if self.heads:
            outputs["page"] = page_loss(self.page_logits(batch, pages), batch.page, batch.page_weight)
        return weighed(outputs, self._weights, self.sum_names)
