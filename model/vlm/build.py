"""A recipe's vision-language model becomes an objective, with what the loader needs for it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, Self

import torch
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from model.config import LossConfig, ModelConfig, VlmConfig
from model.parts import sum_names
from model.vlm.adapters import add_adapters
from model.vlm.checkpoint import KEY, context_of, end_ids_of, load_checkpoint, narrow_fault
from model.vlm.collation import BLOCK, VlmCollation
from model.vlm.objective import VlmObjective
from model.vlm.pages import PageFinder
from model.vlm.prompt import ChatPrompt
from model.vlm.trial import try_sharing
from shards.errors import ConfigError
from shards.tasks import TaskData

logger = logging.getLogger(__name__)

ON_ANOTHER_RANK = "the trial failed on another rank"


class BuiltVlm(NamedTuple):
    """See `model.objective.Built`."""

    objective: VlmObjective
    answer_codec: ChatPrompt
    collation: VlmCollation
    processor: ProcessorMixin
    config: VlmConfig
    reference: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Answers are written."""
        return ()

    @property
    def answers_by(self) -> str | None:
        """Answers are written."""
        return None

    @property
    def blocks(self) -> frozenset[str]:
        """Questions with their answers."""
        return frozenset({BLOCK})

    @property
    def tokenizers(self) -> Mapping[str, PreTrainedTokenizerBase]:
        """That of the processor."""
        return {"vlm": self.processor.tokenizer}

    def settled(self, device: torch.device, any_rank: Callable[[bool], bool]) -> Self:
        """Asks the placed model whether questions can share an image; if not, they are rows, and a line says so.

        Every rank has the same model and rounds as its device does: what fails on one of them is done on none.
        """
        if self.config.questions != "shared":
            return self
        trial = try_sharing(self.objective, self.collation, device)
        if any_rank(not trial.passed) and self.objective.attends_by_blocks:
            logger.info("FlexAttention is not used here: %s", ON_ANOTHER_RANK if trial.passed else trial)
            self.objective.attend_densely()
            trial = try_sharing(self.objective, self.collation, device)
        if not any_rank(not trial.passed):
            return self
        logger.warning(
            "vlm.questions: shared would change what %s computes (%s); every question is a row of its own now, as with "
            "vlm.questions=rows",
            self.reference,
            ON_ANOTHER_RANK if trial.passed else trial,
        )
        self.objective.shared = False
        return self._replace(collation=replace(self.collation, questions="rows"))


def build_vlm(
    model: ModelConfig,
    config: VlmConfig,
    losses: LossConfig,
    *,
    task: TaskData,
    seed: int,
    max_question_tokens: int,
    max_answer_tokens: int,
) -> BuiltVlm:
    """Load the checkpoint of a recipe and put adapters into it; those, and a head over pages, depend on the seed alone.

    Raises:
        ConfigError: no such kind of model, no chat template, adapters for layers that are not there, a limit beyond
            the context.
        DataError: the checkpoint is missing or damaged.
    """
    reference = model.vlm
    assert reference is not None, "asked for"
    loaded = load_checkpoint(reference, quantize=config.quantize)
    context, ends = context_of(loaded.model), end_ids_of(loaded.model, loaded.processor)
    if config.max_tokens is not None and config.max_tokens > context:
        raise ConfigError(f"vlm.max_tokens: {config.max_tokens:,}, but {reference} reads {context:,}; lower it")
    if not ends:
        raise ConfigError(f"{KEY}: {reference}: its tokenizer names no token that ends a text; set its eos_token")
    prompt = ChatPrompt.of(
        loaded.processor,
        end_ids=ends,
        system=config.system,
        max_question_tokens=max_question_tokens,
        max_answer_tokens=max_answer_tokens,
        source=reference,
    )
    too_wide = narrow_fault(loaded.model, reference)
    torch.manual_seed(seed)
    leaves = add_adapters(loaded.model, config).float()  # as all that is trained; the engine casts it
    width = loaded.model.config.get_text_config().hidden_size
    objective = VlmObjective(
        loaded.model,
        leaves,
        page_head=PageFinder(width) if losses.page > 0 else None,
        sum_names=sum_names(task.reads),
        weights={"answer": losses.answer, "page": losses.page},
        tokens=losses.answer_tokens,
        shared=config.questions != "rows",
        max_answer_tokens=max_answer_tokens,
        end_ids=ends,
        gradient_checkpointing=model.recomputed_share,
        too_wide_for_fp16=too_wide,
    )
    collation = VlmCollation(
        prompt=prompt,
        questions=config.questions,
        max_tokens=config.max_tokens or context,
        finds_pages=objective.has_page_head,
    )
    return BuiltVlm(objective, prompt, collation, loaded.processor, config, reference)
