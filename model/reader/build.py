"""A recipe's T5 becomes Hi-VT5: page tokens in its vocabulary, and what stands beside it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

import torch
from tokenizers import AddedToken
from torch import nn
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

from model.config import LossConfig, ModelConfig, ReaderConfig
from model.parts import PARTS, sum_names
from model.parts.answer import AnswerPart
from model.reader.collation import BLOCK, ReaderCollation
from model.reader.objective import TOWER, Beside, ReaderObjective
from model.reader.pages import BoxEmbeddings, PageHead, PageTokens
from model.towers.answer_towers import T5AnswerTower
from model.towers.checkpoint_files import T5_ARCHITECTURES
from model.towers.hub import Checkpoint, load_pretrained
from model.towers.lora import add_lora
from model.towers.tokenizer import T5Codec
from shards.tasks import TaskData


class BuiltReader(NamedTuple):
    """See `model.objective.Built`."""

    objective: ReaderObjective
    answer_codec: T5Codec
    collation: ReaderCollation
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
        """Questions with the pages that they are asked of."""
        return frozenset({BLOCK})

    @property
    def tokenizers(self) -> Mapping[str, PreTrainedTokenizerBase]:
        """That of T5, with page tokens."""
        return {TOWER: self.answer_codec.tokenizer}

    def settled(self, device: torch.device, any_rank: Callable[[bool], bool]) -> Self:  # noqa: ARG002 - nothing is open
        """See `model.objective.Built.settled`."""
        return self


def build_reader(
    model: ModelConfig,
    config: ReaderConfig,
    losses: LossConfig,
    *,
    task: TaskData,
    seed: int,
    max_question_tokens: int,
    max_answer_tokens: int,
) -> BuiltReader:
    """Load the T5 of a recipe, and put adapters into it; what starts untrained depends on the seed alone.

    Raises:
        ConfigError: no T5, or adapters for layers that are not there.
        DataError: the checkpoint is missing or damaged.
    """
    loaded, page_ids = load_t5(model.answer, config.page_tokens, seed=seed)
    t5, lora, frozen = loaded.model, model.lora.answer, TOWER in model.freeze
    width, start = t5.config.d_model, t5.shared.weight[list(page_ids)]
    weights = {name: getattr(losses, name) for name in PARTS if name in task.reads and getattr(losses, name) > 0}
    head = PageHead(max_pages=config.max_pages, page_tokens=config.page_tokens, width=width)
    beside = Beside(
        BoxEmbeddings(width, t5.config.dropout_rate) if config.boxes else None,
        PageTokens(start) if frozen else None,
        head if "page" in weights else None,
    )
    adapters = add_lora(t5, lora, "model.lora.answer") if lora.rank else None
    tower = T5AnswerTower(t5, checkpointing=model.recomputed_share)
    codec = T5Codec.of(
        t5.config,
        loaded.tokenizer,
        max_question_tokens=max_question_tokens,
        max_answer_tokens=max_answer_tokens,
    )
    objective = ReaderObjective(
        tower,
        frozen=frozen,
        adapters=adapters,
        beside=beside,
        page_tokens=config.page_tokens,
        part=AnswerPart(tower, codec, max_answer_tokens, tokens=losses.answer_tokens),
        weights=weights,
        sum_names=sum_names(task.reads),
    )
    collation = ReaderCollation(
        codec=codec, page_ids=page_ids, max_pages=config.max_pages, max_page_tokens=config.max_page_tokens
    )
    return BuiltReader(objective, codec, collation, model.answer)


def load_t5(reference: str, page_tokens: int, *, seed: int) -> tuple[Checkpoint, tuple[int, ...]]:
    """A T5 with page tokens in its vocabulary, and their ids; rows that it lacked depend on the seed alone.

    Raises:
        ConfigError, DataError: as `load_pretrained`.
    """
    loaded = load_pretrained(reference, T5_ARCHITECTURES, key="model.answer")
    torch.manual_seed(seed)
    return loaded, add_page_tokens(loaded.model, loaded.tokenizer, page_tokens)


@torch.no_grad()
def add_page_tokens(
    model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, count: int
) -> tuple[int, ...]:
    """Put `[PAGE_0]`, `[PAGE_1]`, ... into a vocabulary that lacks them, embedded at random as widely as the others.

    Published T5 have rows without a token, which the new ones take; else the embeddings and the output layer grow.

    Returns:
        Their ids.
    """
    names = [f"[PAGE_{number}]" for number in range(count)]
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    ids = tuple(tokenizer.convert_tokens_to_ids(names))
    _grow(model, max(ids) + 1)
    new = [number for name, number in zip(names, ids, strict=True) if name not in known]
    embeddings = model.shared.weight
    embeddings[new] = torch.randn(len(new), embeddings.shape[1]) * embeddings.std()
    return ids


def _grow(model: T5ForConditionalGeneration, size: int) -> None:
    """Rows of zeros for tokens beyond the vocabulary; an output layer of its own stays apart from the embeddings."""
    missing = size - model.config.vocab_size
    if missing <= 0:
        return
    output, tied = model.lm_head, model.lm_head.weight is model.shared.weight
    embeddings = nn.Embedding.from_pretrained(nn.functional.pad(model.shared.weight, (0, 0, 0, missing)), freeze=False)
    model.set_input_embeddings(embeddings)
    output.weight = embeddings.weight if tied else nn.Parameter(nn.functional.pad(output.weight, (0, 0, 0, missing)))
    output.out_features = model.config.vocab_size = size
