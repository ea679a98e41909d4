"""What the step benchmark computes: BLIP-base's sizes, GQA's question lengths, random weights and contents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipTextConfig,
    BlipVisionConfig,
)

from model.build import FusedStreams, build_parts
from model.config import LossConfig
from model.fusion.difnet import DifnetEncoder
from model.fusion.encoder import FusionEncoder
from model.fusion_objective import FusionObjective, Towers
from model.looking.second_stream import GridTokens
from model.parts import sum_names
from model.towers.answer_towers import BlipAnswerTower
from model.towers.match_tower import MatchTower
from model.towers.vision import BlipVisionTower
from shards.read.collate import IGNORED_LABEL, Batch, Block, Targets, TokenIds, pad
from shards.tasks import TASKS

GQA_QUESTION_TOKENS: Mapping[int, int] = {
    7: 2,
    8: 7,
    9: 14,
    10: 16,
    11: 12,
    12: 17,
    13: 24,
    14: 7,
    15: 5,
    16: 5,
    17: 8,
    18: 1,
    19: 1,
    20: 1,
    21: 1,
    22: 1,
}
"""Tokens of a question, the first one and [SEP] included, and how many of 122 questions of GQA's
train_all_questions_0.json have so many, a word or a mark being a token."""

ANSWER_TOKENS: Mapping[int, int] = {1: 9, 2: 1}
"""The same for answers, without special tokens. GQA's answers are words; now and then WordPiece splits one."""

PAIRS_PER_QUESTION = 2
"""The question with its answer, and with a wrong one (`losses.negatives: [answer]`)."""

_VISION_STD = 0.02
"""BlipVisionConfig's own default, 1e-10, leaves nothing to tell one image from another."""

_PAD, _CLASS, _END = 0, 101, 102
_FIRST_WORD = 103
_LENGTH_MULTIPLE = 8
"""As the loader pads; the plain path cuts its rows back to the longest."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the towers and of the fusion encoder; the defaults are BLIP-base's at 224 pixels."""

    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    text_width: int = 768
    text_layers: int = 12
    """Of each text encoder and of the decoder."""
    text_heads: int = 12
    vocab_size: int = 30_524
    map_width: int = 256
    """Channels of the second stream's map, as EfficientSAM's neck has them."""
    fusion_layers: int = 3
    separate_layers: int = 1
    repeats: int = 2
    fusion_heads: int = 8

    @property
    def grid(self) -> int:
        """Patches on a side."""
        return self.image_size // self.patch_size


class GivenMaps(nn.Module):
    """In the place of EfficientSAM: maps that were drawn once. Every path reads the same, and none pays for them."""

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.register_buffer("maps", maps)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) pixels of the batch that the maps were drawn for to its maps (B, C, g, g)."""
        assert len(pixels) == len(self.maps), (len(pixels), len(self.maps))
        return self.maps


class Workload(NamedTuple):
    """What every path computes the gradients of."""

    objective: FusionObjective
    batch: Batch

    @property
    def num_questions(self) -> int:
        return len(self.batch.blocks["ask"].ids)


def build_workload(sizes: Sizes, *, questions: Sequence[int], seed: int = 1) -> Workload:
    """An objective with frozen towers and a trained DIFNet fusion, and a batch for it; all on the CPU in fp32.

    Args:
        questions: of each image.
    """
    images = len(questions)
    torch.manual_seed(seed)
    task = TASKS["gqa"]
    towers = _towers(sizes, torch.randn(images, sizes.map_width, sizes.grid, sizes.grid))
    objective = FusionObjective(
        _fusion(sizes),
        towers,
        freeze=("vision", "second_stream", "match", "answer"),
        parts=build_parts(task, LossConfig(), towers, answer_codec=None, max_answer_tokens=max(ANSWER_TOKENS) + 1),
        sum_names=sum_names(task.reads),
    )
    generator = torch.Generator().manual_seed(seed)
    batch = draw_batch(sizes, questions=questions, generator=generator)
    return Workload(objective, batch)


def draw_batch(sizes: Sizes, *, questions: Sequence[int], generator: torch.Generator) -> Batch:
    """Random pixels and ids; lengths from the two histograms; every question with its answer and a wrong one.

    Args:
        questions: of each image.
    """
    images, count = len(questions), sum(questions)
    texts = _texts(GQA_QUESTION_TOKENS, count, sizes, generator, special=2)
    answers = _texts(ANSWER_TOKENS, PAIRS_PER_QUESTION * count, sizes, generator)
    own = answers[::PAIRS_PER_QUESTION]
    asked = [[_CLASS, *text, _END] for text in texts]
    pairs = [[*asked[number // PAIRS_PER_QUESTION], *answer, _END] for number, answer in enumerate(answers)]
    question_ids, question_mask = pad(asked, _PAD, multiple=_LENGTH_MULTIPLE)
    match_ids, match_mask = pad(pairs, _PAD, multiple=_LENGTH_MULTIPLE)
    image = torch.arange(images).repeat_interleave(torch.tensor(questions))
    side = sizes.image_size
    ask = Block(
        ids=question_ids,
        mask=question_mask,
        image=image,
        item=torch.arange(count),
        weight=torch.ones(count),
        labels=torch.zeros(count, dtype=torch.int64),
        targets=Targets(
            ids=pad([[_start_id(sizes), *answer] for answer in own], _PAD)[0],
            labels=pad([[*answer, _END] for answer in own], IGNORED_LABEL)[0],
            row=torch.arange(count),
            weight=torch.ones(count),
            one_per_row=True,
        ),
        rows_per_image=max(questions),
        rows_per_item=1,
        tokens=int(question_mask.sum()),
    )
    match = Block(
        ids=match_ids,
        mask=match_mask,
        image=image.repeat_interleave(PAIRS_PER_QUESTION),
        item=torch.arange(count).repeat_interleave(PAIRS_PER_QUESTION),
        weight=torch.full((PAIRS_PER_QUESTION * count,), 0.5),
        labels=torch.tensor([1, 0]).repeat(count),
        targets=None,
        rows_per_image=PAIRS_PER_QUESTION * max(questions),
        rows_per_item=PAIRS_PER_QUESTION,
        tokens=int(match_mask.sum()),
    )
    pixels = torch.randint(256, (images, 3, side, side), dtype=torch.uint8, generator=generator)
    return Batch(pixels, {"ask": ask, "match": match}, torch.tensor(1.0 / count))


def _texts(
    histogram: Mapping[int, int], count: int, sizes: Sizes, generator: torch.Generator, special: int = 0
) -> list[TokenIds]:
    """Random words; the lengths of the histogram include `special` tokens that are not among them."""
    weights = torch.tensor(list(histogram.values()), dtype=torch.float64)
    drawn = torch.multinomial(weights, count, replacement=True, generator=generator).tolist()
    lengths = [list(histogram)[place] - special for place in drawn]
    last = _start_id(sizes)
    return [torch.randint(_FIRST_WORD, last, (length,), generator=generator).tolist() for length in lengths]


def _start_id(sizes: Sizes) -> int:
    """[DEC], which BLIP's tokenizer adds behind BERT's vocabulary, before [ENC]."""
    return sizes.vocab_size - 2


def _towers(sizes: Sizes, maps: Tensor) -> Towers:
    config = _blip_config(sizes)
    answering, matching = BlipForQuestionAnswering(config), BlipForImageTextRetrieval(config)
    return Towers(
        vision=BlipVisionTower(answering.vision_model),
        second_stream=GivenMaps(maps),
        match=MatchTower(matching.text_encoder, matching.itm_head),
        answer=BlipAnswerTower(answering.text_encoder, answering.text_decoder),
    )


def _blip_config(sizes: Sizes) -> BlipConfig:
    text = BlipTextConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.text_width,
        encoder_hidden_size=sizes.vision_width,
        intermediate_size=4 * sizes.text_width,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text_heads,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=_start_id(sizes),
        eos_token_id=_END,
        sep_token_id=_END,
        pad_token_id=_PAD,
    )
    vision = BlipVisionConfig(
        hidden_size=sizes.vision_width,
        intermediate_size=4 * sizes.vision_width,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_heads,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        initializer_range=_VISION_STD,
    )
    return BlipConfig(text_config=text, vision_config=vision)


def _fusion(sizes: Sizes) -> FusedStreams:
    width = sizes.vision_width
    difnet = DifnetEncoder(
        width=width,
        heads=sizes.fusion_heads,
        ffn_width=4 * width,
        layers=sizes.fusion_layers,
        separate_layers=sizes.separate_layers,
        repeats=sizes.repeats,
        dropout=0.0,
    )
    encoder = FusionEncoder(difnet, width_a=width, width_b=sizes.map_width, width=width, out_width=width, dropout=0.0)
    return FusedStreams(encoder, GridTokens(sizes.grid, sizes.map_width))
