"""What `duoflow bench vlm` computes: a small Qwen2.5-VL with random weights, and questions of GQA's lengths about one
image, in each of the ways in which they can stand in sequences."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

from model.config import LanguageLoraConfig, VlmConfig
from model.vlm.adapters import add_adapters
from model.vlm.batch import Asked, Sequences, VlmBatch
from model.vlm.collation import Questions, lay_out, learnt_of
from model.vlm.objective import VlmObjective
from model.vlm.prompt import Row, TokenIds
from trainer.bench.workload import ANSWER_TOKENS, GQA_QUESTION_TOKENS

_IMAGE, _START, _END_OF_IMAGE, _END, _FIRST_WORD = 1, 2, 3, 4, 16
_TEMPLATE_TOKENS = 8
"""Of a turn around a question, in ChatML."""
_MERGE = 2
_PATCH = 14


@dataclass(frozen=True, kw_only=True)
class VlmSizes:
    """The model, and what it is asked."""

    questions: int = 16
    prefix: int = 256
    """Tokens of the image: a square number."""
    width: int = 256
    layers: int = 4
    heads: int = 4
    vision_width: int = 128
    vision_layers: int = 2
    vocab_size: int = 4096
    rank: int = 16
    answer_tokens: int = 8
    """Tokens that an answer is written up to."""


class Asking(NamedTuple):
    """The tokens of a micro-batch, before they stand anywhere."""

    prefix: TokenIds
    rows: list[Row]
    prompts: list[TokenIds]
    weights: Tensor
    """Such that the loss is the mean over all learnt tokens, as trainers of rows have it."""
    pixels: Tensor
    """(patches, numbers of a patch)"""
    grid: Tensor
    """(1, 3) int64"""


def build_objective(sizes: VlmSizes, *, shared: bool) -> VlmObjective:
    """The model with adapters that are not zero, the same for the same sizes."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(_config(sizes), attn_implementation="sdpa").eval()
    config = VlmConfig(language=LanguageLoraConfig(rank=sizes.rank))
    leaves = add_adapters(model, config)
    for parameter in leaves.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return VlmObjective(
        model,
        leaves,
        page_head=None,
        sum_names=("answer_loss", "answered"),
        weights={"answer": 1.0},
        shared=shared,
        max_answer_tokens=sizes.answer_tokens,
        end_ids=(_END,),
    )


def ask(sizes: VlmSizes) -> Asking:
    """Questions about an image of noise, the same for the same sizes."""
    side = round(sizes.prefix**0.5)
    assert side**2 == sizes.prefix, "the image is a square of tokens"
    generator = torch.Generator().manual_seed(1)

    def words(count: int) -> TokenIds:
        return torch.randint(_FIRST_WORD, sizes.vocab_size, (count,), generator=generator).tolist()

    prompts = [words(length + _TEMPLATE_TOKENS) for length in _lengths(GQA_QUESTION_TOKENS, sizes.questions, generator)]
    answers = [[*words(length), _END] for length in _lengths(ANSWER_TOKENS, sizes.questions, generator)]
    rows = [
        Row([*prompt, *answer], ((len(prompt), len(prompt) + len(answer)),))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    learnt = torch.tensor([len(answer) for answer in answers], dtype=torch.float32)
    pixels = torch.randn(sizes.prefix * _MERGE**2, 3 * 2 * _PATCH**2, generator=generator)
    grid = torch.tensor([[1, side * _MERGE, side * _MERGE]])
    return Asking([_START, *[_IMAGE] * sizes.prefix], rows, prompts, learnt / learnt.sum(), pixels, grid)


def batch_of(asking: Asking, questions: Questions) -> VlmBatch:
    """The micro-batch of a way of asking, with the questions to be answered."""
    groups = [asking.rows] if questions == "shared" else [[row] for row in asking.rows]
    if questions == "conversation":
        groups = [[_joined(asking.rows)]]
    sequences, starts = _sequences(asking, groups)
    learnt = learnt_of(groups, starts, sequences.ids.shape[1], asking.weights)
    plain = [Row(prompt, ()) for prompt in asking.prompts]
    prompts = [[row] for row in plain] if questions == "rows" else [plain]
    asked, begins = _sequences(asking, prompts)
    length = asked.ids.shape[1]
    at = [
        number * length + begin + len(row.ids) - 1
        for number, (group, of_group) in enumerate(zip(prompts, begins, strict=True))
        for row, begin in zip(group, of_group, strict=True)
    ]
    return VlmBatch(sequences, learnt, None, Asked(asked, torch.tensor(at)), torch.tensor(1.0))


def plain_rows(batch: VlmBatch) -> dict[str, Tensor]:
    """The rows as any trainer has them: labels of -100 but at what is learnt."""
    sequences, learnt = batch.sequences, batch.learnt
    labels = torch.full_like(sequences.ids, -100).flatten()
    labels[learnt.at + 1] = learnt.token
    return {
        "input_ids": sequences.ids,
        "attention_mask": (sequences.segment >= 0).long(),
        "labels": labels.view_as(sequences.ids),
        **sequences.kinds,
        **sequences.media,
    }


def _sequences(asking: Asking, groups: list[list[Row]]) -> tuple[Sequences, list[list[int]]]:
    laid = lay_out([asking.prefix] * len(groups), groups, pad_id=0)
    kinds = {"mm_token_type_ids": (laid.ids == _IMAGE).long()}
    media = {
        "pixel_values": asking.pixels.repeat(len(groups), 1),
        "image_grid_thw": asking.grid.repeat(len(groups), 1),
    }
    return Sequences(laid.ids, laid.segment, laid.place, kinds, media), laid.starts


def _joined(rows: list[Row]) -> Row:
    """All questions with their answers, one behind the other."""
    ids: TokenIds = []
    spans = []
    for row in rows:
        ((start, end),) = row.spans
        spans.append((len(ids) + start, len(ids) + end))
        ids += row.ids
    return Row(ids, tuple(spans))


def _lengths(weights: Any, count: int, generator: torch.Generator) -> list[int]:
    lengths, shares = list(weights), torch.tensor(list(weights.values()), dtype=torch.float32)
    return [lengths[number] for number in torch.multinomial(shares, count, True, generator=generator).tolist()]


def _config(sizes: VlmSizes) -> Qwen2_5_VLConfig:
    head = sizes.width // sizes.heads
    third = head // 2 // 3
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": sizes.vocab_size,
            "hidden_size": sizes.width,
            "intermediate_size": 3 * sizes.width,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.heads // 2,
            "max_position_embeddings": 32768,
            "bos_token_id": None,
            "eos_token_id": _END,
            "rope_parameters": {"rope_type": "default", "mrope_section": [head // 2 - 2 * third, third, third]},
        },
        vision_config={
            "depth": sizes.vision_layers,
            "hidden_size": sizes.vision_width,
            "intermediate_size": 3 * sizes.vision_width,
            "num_heads": 4,
            "out_hidden_size": sizes.width,
            "fullatt_block_indexes": [sizes.vision_layers - 1],
        },
        image_token_id=_IMAGE,
        video_token_id=5,
        vision_start_token_id=_START,
        vision_end_token_id=_END_OF_IMAGE,
    )
