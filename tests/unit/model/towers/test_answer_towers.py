"""T5 over fused tokens: each question as if it were alone, gradients through frozen weights, never in fp16."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, T5ForConditionalGeneration

from model.towers.answer_towers import AnswerTower, BlipAnswerTower, T5AnswerTower
from model.towers.checkpoint_files import T5_ARCHITECTURES
from model.towers.hub import load_pretrained
from model.towers.tokenizer import T5Codec
from shards.errors import ConfigError
from shards.read.collate import IGNORED_LABEL, Block, Targets
from tests.models import random_batch, tiny_blip, tiny_model, tiny_t5

ROWS = (2, 3, 1)
MAX_TOKENS = 4


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture
def t5(reference: str) -> T5ForConditionalGeneration:
    return load_pretrained(reference, T5_ARCHITECTURES).model.eval()


@pytest.fixture(scope="module")
def codec(reference: str) -> T5Codec:
    model, tokenizer = load_pretrained(reference, T5_ARCHITECTURES)
    return T5Codec.of(model.config, tokenizer, max_question_tokens=6, max_answer_tokens=3)


def t5_questions() -> Block:
    """Random questions; the answers start with T5's start token and end with its end token."""
    block = random_batch(ROWS).blocks["ask"]
    targets = block.targets
    labels = targets.labels.masked_fill(targets.labels == 3, 1)
    return block._replace(targets=targets._replace(ids=targets.ids.index_fill(1, torch.tensor([0]), 0), labels=labels))


def losses_of(tower: AnswerTower, fused: Tensor, block: Block) -> Tensor:
    return tower.losses(tower.read(fused, block).states, block.mask, block.targets)


def fused_tokens() -> Tensor:
    return torch.randn(len(ROWS), 5, 24, generator=torch.Generator().manual_seed(7))


def alone(t5: T5ForConditionalGeneration, fused: Tensor, block: Block) -> list[Tensor]:
    """What the encoder reads for each question: tokens of its image, then its own, without any padding."""
    words = t5.get_input_embeddings()
    return [
        torch.cat([fused[image], words(ids[mask])])[None]
        for image, ids, mask in zip(block.image, block.ids, block.mask, strict=True)
    ]


def test_losses_are_those_of_each_question_alone(t5: T5ForConditionalGeneration) -> None:
    block, fused, tower = t5_questions(), fused_tokens(), T5AnswerTower(t5)
    expected = []
    for read, labels in zip(alone(t5, fused, block), block.targets.labels, strict=True):
        known = labels[labels != IGNORED_LABEL][None]
        expected.append(t5(inputs_embeds=read, labels=known).loss)
    torch.testing.assert_close(losses_of(tower, fused, block), torch.stack(expected))


@pytest.mark.parametrize("kind", ["blip", "t5"])
def test_several_answers_behind_a_question_have_the_losses_of_the_question_repeated(
    t5: T5ForConditionalGeneration, kind: str
) -> None:
    blip = tiny_blip()
    tower = T5AnswerTower(t5) if kind == "t5" else BlipAnswerTower(blip.text_encoder, blip.text_decoder)
    block, fused = t5_questions(), fused_tokens()
    targets_of = torch.tensor([2, 0, 3, 1, 0, 2])  # of the rows of three images
    row = torch.repeat_interleave(torch.arange(len(targets_of)), targets_of)
    written = torch.randint(7, 40, (len(row), 3), generator=torch.Generator().manual_seed(5))
    ids = torch.cat([torch.full((len(row), 1), 5), written[:, :-1]], dim=1)
    several = Targets(ids, written, row, torch.ones(len(row)), one_per_row=False)
    repeated = block._replace(
        ids=block.ids[row],
        mask=block.mask[row],
        image=block.image[row],
        targets=several._replace(row=torch.arange(len(row)), one_per_row=True),
        rows_per_image=int(block.image[row].bincount().max()),
        tokens=int(block.mask[row].sum()),
    )
    found = losses_of(tower, fused, block._replace(targets=several))
    torch.testing.assert_close(found, losses_of(tower, fused, repeated), atol=1e-6, rtol=1e-6)
    assert len(found.unique()) == len(row), "every answer has a loss of its own"


def test_answers_are_those_of_each_question_alone(t5: T5ForConditionalGeneration, codec: T5Codec) -> None:
    block, fused = t5_questions(), fused_tokens()
    expected = []
    for read in alone(t5, fused, block):
        ids = t5.generate(inputs_embeds=read, max_new_tokens=MAX_TOKENS, do_sample=False)[0, 1:].tolist()
        expected.append(ids + [0] * (MAX_TOKENS - len(ids)))
    found = generated(t5, fused, block, codec)
    assert [row + [0] * (MAX_TOKENS - len(row)) for row in found] == expected
    assert len({tuple(row) for row in expected}) > 1, "the answers differ between questions"


def generated(t5: T5ForConditionalGeneration, fused: Tensor, block: Block, codec: T5Codec) -> list[list[int]]:
    tower = T5AnswerTower(t5)
    with torch.no_grad():
        return tower.generate(tower.read(fused, block).states, block.mask, codec, MAX_TOKENS).tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 9.0},
        {"no_repeat_ngram_size": 1},
        {"num_beams": 3, "length_penalty": 2.0},
        {"suppress_tokens": list(range(2, 60))},
        {"do_sample": True, "temperature": 3.0, "top_k": 9},
        {"max_length": 2, "forced_eos_token_id": 1, "begin_suppress_tokens": list(range(2, 40))},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_a_checkpoint_says_of_generation_does_not_apply(
    t5: T5ForConditionalGeneration, reference: str, codec: T5Codec, settings: dict[str, Any], tmp_path: Path
) -> None:
    GenerationConfig(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **settings).save_pretrained(tmp_path)
    shutil.copytree(reference, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("generation_config.json"))
    other = load_pretrained(str(tmp_path), T5_ARCHITECTURES).model.eval()
    block, fused = t5_questions(), fused_tokens()
    name, value = next(iter(settings.items()))
    assert getattr(other.generation_config, name) == value
    assert generated(other, fused, block, codec) == generated(t5, fused, block, codec)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_pass_through_frozen_weights_and_checkpointing_does_not_change_them(
    reference: str, checkpointing: bool
) -> None:
    def gradient(checkpointing: bool) -> Tensor:
        model = load_pretrained(reference, T5_ARCHITECTURES).model.eval().requires_grad_(False)
        tower, fused = T5AnswerTower(model, checkpointing=checkpointing), fused_tokens().requires_grad_(True)
        block = t5_questions()
        losses_of(tower, fused, block).sum().backward()
        assert all(parameter.grad is None for parameter in model.parameters())
        return fused.grad

    found = gradient(checkpointing)
    assert found.abs().sum() > 0
    torch.testing.assert_close(found, gradient(False))


def test_checkpointing_computes_each_block_again(reference: str) -> None:
    model = load_pretrained(reference, T5_ARCHITECTURES).model.eval().requires_grad_(False)
    calls = []
    model.encoder.block[0].layer[0].register_forward_hook(lambda *_: calls.append(1))
    tower, block, fused = T5AnswerTower(model, checkpointing=True), t5_questions(), fused_tokens().requires_grad_(True)
    losses = losses_of(tower, fused, block)
    assert len(calls) == 1
    losses.sum().backward()
    assert len(calls) == 2


def test_a_frozen_t5_stays_out_of_fp16_and_casts_what_it_reads(reference: str) -> None:
    built = tiny_model(answer=reference, freeze=("answer",))
    objective = built.objective
    objective.place_frozen(torch.device("cpu"), torch.float16)
    tower = objective.tower("answer")
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}
    block = t5_questions()
    losses = losses_of(tower, fused_tokens().half(), block)
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    assert objective.too_wide_for_fp16 is None
    assert tiny_model(answer=reference).objective.too_wide_for_fp16


def test_texts_are_lower_case_and_end_with_the_end_token(codec: T5Codec) -> None:
    lower, _ = codec.questions(["is there a red square"])
    assert codec.questions(["  Is there a RED square "])[0] == lower
    ids, cut = codec.questions(["what color is the big circle", "is there a red square"])
    assert [row[-1] for row in ids] == [1, 1]
    assert [len(row) for row in ids] == [6, 6]
    assert cut == [True, False]
    assert codec.answers(["red", "to the left of"]) == [codec.answers(["red"])[0], codec.answers(["to the"])[0]]
    assert codec.decode([[*codec.answers(["red"])[0], 1, 5, 0]]) == ["red"]


def test_towers_that_read_other_widths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"different widths \[16, 24\]"):
        tiny_model(answer=tiny_t5(tmp_path, width=16))
