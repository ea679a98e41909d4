"""A recipe's retrieval checkpoint becomes an objective, with what the loader needs for it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from model.checkpointing import recompute_layers_in
from model.config import LossConfig, ModelConfig, RetrievalConfig
from model.parts import sum_names
from model.retrieval.checkpoint import RetrievalCheckpoint, load_checkpoint
from model.retrieval.collation import BLOCK, RetrievalCollation
from model.retrieval.objective import RetrievalObjective, Towers
from model.retrieval.texts import TextForm
from model.retrieval.towers import Temperature
from model.towers.lora import add_lora
from shards.tasks import TaskData


class BuiltRetrieval(NamedTuple):
    """See `model.objective.Built`."""

    objective: RetrievalObjective
    collation: RetrievalCollation
    checkpoint: RetrievalCheckpoint
    config: RetrievalConfig
    reference: str

    @property
    def answer_codec(self) -> None:
        """Pages are named, and nothing is written."""

    @property
    def classes(self) -> tuple[str, ...]:
        """There are none."""
        return ()

    @property
    def answers_by(self) -> str | None:
        """There are none."""
        return None

    @property
    def blocks(self) -> frozenset[str]:
        """Questions with the pages that they may mean."""
        return frozenset({BLOCK})

    @property
    def tokenizers(self) -> Mapping[str, PreTrainedTokenizerBase]:
        """That of the text tower."""
        return {"retrieval": self.collation.form.tokenizer}

    def settled(self, device: torch.device, any_rank: Callable[[bool], bool]) -> Self:  # noqa: ARG002 - nothing is open
        """See `model.objective.Built.settled`."""
        return self


def build_retrieval(
    model: ModelConfig,
    config: RetrievalConfig,
    losses: LossConfig,
    *,
    task: TaskData,
    seed: int,
    max_question_tokens: int,
) -> BuiltRetrieval:
    """Load the checkpoint of a recipe, and put adapters into it; those depend on the seed alone.

    Raises:
        ConfigError: no such kind of model, or adapters for layers that are not there.
        DataError: the checkpoint is missing or damaged.
    """
    reference = model.retrieval
    assert reference is not None, "asked for"
    loaded = load_checkpoint(reference)
    recompute_layers_in(loaded.model, model.recomputed_share)
    start = float(loaded.model.logit_scale.detach())
    torch.manual_seed(seed)
    objective = RetrievalObjective(
        loaded.towers,
        freeze=config.freeze,
        adapters=_adapters(loaded.towers, config),
        temperature=Temperature(start) if config.loss == "contrastive" else None,
        loss=config.loss,
        margin=config.margin,
        sum_names=sum_names(task.reads),
        weight=losses.retrieve,
    )
    tokenizer, context = loaded.processor.tokenizer, loaded.context
    form = TextForm(
        tokenizer=tokenizer,
        limit=min(max_question_tokens, context),
        context=context,
        reads_padding=loaded.reads_padding,
    )
    collation = RetrievalCollation(form=form, processor=loaded.processor.image_processor)
    return BuiltRetrieval(objective, collation, loaded, config, reference)


def _adapters(towers: Towers, config: RetrievalConfig) -> dict[str, nn.Module]:
    sections = {name: getattr(config.lora, name) for name in towers._fields}
    return {
        name: add_lora(getattr(towers, name), section, f"retrieval.lora.{name}")
        for name, section in sections.items()
        if section.rank
    }
