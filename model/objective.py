"""What an objective is to whoever trains, evaluates and saves it: a module whose forward does everything.

Its registered parameters are exactly those that are trained; what is frozen hangs on it unregistered.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from shards.read.collation import Collation


class StepOutput(NamedTuple):
    """What a training forward gives."""

    loss: Tensor
    """() float32, scaled with the `loss_scale` of the batch."""
    sums: Tensor
    """(len(sum_names),) float32, detached."""


class EvaluationOutput(NamedTuple):
    """What an evaluation forward gives."""

    sums: Tensor
    """(len(sum_names),) float32."""
    predictions: dict[str, Tensor]
    """By part, of those that predict something."""


class Objective(Protocol):
    """A loss over micro-batches of one form, with the module that it trains; each one is an `nn.Module`."""

    sum_names: tuple[str, ...]
    """What is summed over items in every micro-batch, so that any number of ranks and steps merges exactly."""

    def __call__(self, batch: Any) -> StepOutput:
        """The training loss of a micro-batch."""
        ...

    def evaluate(self, batch: Any) -> EvaluationOutput:
        """The same sums without a graph, and what each part predicts."""
        ...

    def place_frozen(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move and cast what is frozen; the engine does it for what is registered."""
        ...

    def frozen_towers(self) -> Iterator[tuple[str, nn.Module]]:
        """What is frozen, by name."""
        ...

    def frozen_counts(self) -> dict[str, int]:
        """Parameters that are not trained, by name of what they are in."""
        ...

    @property
    def adapters(self) -> Mapping[str, nn.Module]:
        """LoRA's leaf modules by what they adapt."""
        ...

    @property
    def starts_gated(self) -> bool:
        """Whether something that is trained starts at zero and holds back the gradients of others for a step."""
        ...

    @property
    def too_wide_for_fp16(self) -> str | None:
        """What is trained here and leaves the range of fp16, for a message; None where nothing does."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained."""
        ...

    def named_parameters(self, *, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained, by the names that checkpoints have for it."""
        ...

    def eval(self) -> Self:
        """Leave training mode."""
        ...

    def to(self, *, device: torch.device, dtype: torch.dtype) -> Self:
        """Move and cast what is registered."""
        ...


class FrozenApart(nn.Module):
    """An objective's frozen towers, which hang on it unregistered, and the leaves of LoRA inside of them, in `lora`."""

    def __init__(self) -> None:
        super().__init__()
        self._frozen: dict[str, nn.Module] = {}

    def frozen_towers(self) -> Iterator[tuple[str, nn.Module]]:
        """See `Objective`."""
        yield from self._frozen.items()

    def frozen_counts(self) -> dict[str, int]:
        """See `Objective`."""
        return {
            name: sum(parameter.numel() for parameter in tower.parameters() if not parameter.requires_grad)
            for name, tower in self._frozen.items()
        }

    def place_frozen(self, device: torch.device, dtype: torch.dtype) -> None:
        """See `Objective`; adapters follow the engine."""
        for tower in self._frozen.values():
            tower.to(device=device, dtype=self.frozen_dtype(tower, device, dtype))

    def frozen_dtype(self, tower: nn.Module, device: torch.device, dtype: torch.dtype) -> torch.dtype:  # noqa: ARG002
        """The precision of a frozen tower, where its weights may have to stay wider than `dtype`."""
        return dtype

    @property
    def adapters(self) -> Mapping[str, nn.Module]:
        """See `Objective`."""
        return dict(self.lora.items()) if "lora" in self._modules else {}

    @property
    def starts_gated(self) -> bool:
        """See `Objective`: LoRA's B is 0 at first and holds A's gradient back."""
        return bool(self.adapters)


class AnswerCodec(Protocol):
    """How a model writes answers."""

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each answer, cut to the limit, without special tokens."""
        ...

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The answers that were written, without special tokens."""
        ...


class Built(Protocol):
    """An objective and what goes with it, to whoever trains and evaluates it."""

    @property
    def objective(self) -> Objective: ...

    @property
    def answer_codec(self) -> AnswerCodec | None:
        """None where no answers are written."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """What the class head names, and the list that a ranking chooses from."""
        ...

    @property
    def answers_by(self) -> str | None:
        """See `AnswersConfig.by`."""
        ...

    @property
    def blocks(self) -> frozenset[str]:
        """The blocks of rows that it reads."""
        ...

    @property
    def tokenizers(self) -> Mapping[str, PreTrainedTokenizerBase]:
        """By the part whose texts they read."""
        ...

    @property
    def collation(self) -> Collation:
        """How the loader makes its micro-batches."""
        ...

    def settled(self, device: torch.device, any_rank: Callable[[bool], bool]) -> Self:
        """What can only be known of a model that is placed: called once on every rank, before its loaders are made.

        Args:
            any_rank: collective; whether something is true on at least one rank.
        """
        ...
