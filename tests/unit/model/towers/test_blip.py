"""Grouped BLIP against the plain transformers modules, one question per row: the same outputs and gradients."""

import pytest
import torch
from torch import Tensor
from transformers import BlipForImageTextRetrieval, BlipForQuestionAnswering

from model.rows import Grouping
from model.towers import blip
from model.towers.blip import decode_text, encode_image, encode_text, generate_greedily
from shards.read.collate import Block
from tests.models import IMAGE_SIZE, random_batch, tiny_blip

ROWS = (3, 1, 4)


def relative_difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """||found - expected|| / ||expected||, over all tensors together."""
    apart = sum(float((one - other).detach().square().sum()) for one, other in zip(found, expected, strict=True))
    return (apart / sum(float(other.detach().square().sum()) for other in expected)) ** 0.5


def questions(*, seed: int = 0) -> Block:
    return random_batch(ROWS, seed=seed).blocks["ask"]


def grouping_of(ask: Block) -> Grouping:
    return Grouping.of(ask.image, num_images=len(ROWS), rows_per_image=max(ROWS))


def plain_rows(model: BlipForQuestionAnswering, tokens: Tensor, ask: Block) -> list[Tensor]:
    """Last hidden states of each question alone, without padding, as the model's own forward gives them."""
    states = []
    for ids, mask, image in zip(ask.ids, ask.mask, ask.image, strict=True):
        read = tokens[int(image)][None]
        row = model.text_encoder(ids[mask][None], encoder_hidden_states=read).last_hidden_state
        states.append(row[0])
    return states


@pytest.mark.parametrize("scores_at_once", [1, 600, 2**20])
def test_the_vision_transformer_equals_the_plain_one(scores_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels = tiny_blip(), torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    monkeypatch.setattr(blip, "_CACHED_SCORES", scores_at_once)
    torch.testing.assert_close(
        encode_image(model.vision_model, pixels), model.vision_model(pixels).last_hidden_state, atol=1e-6, rtol=1e-6
    )


def test_on_a_cpu_the_vision_transformer_gives_the_plain_ones_bits() -> None:
    model, pixels = tiny_blip(), torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert torch.equal(encode_image(model.vision_model, pixels), model.vision_model(pixels).last_hidden_state)


def test_grouped_questions_equal_one_question_per_row_in_output_and_gradient() -> None:
    model, ask = tiny_blip(), questions()
    shared = torch.randn(len(ROWS), 17, 24, requires_grad=True)
    alone = shared.detach().clone().requires_grad_()
    grouped = encode_text(model.text_encoder, ask.ids, ask.mask, shared, grouping_of(ask))
    plain = plain_rows(model, alone, ask)
    weights = [torch.randn_like(row) for row in plain]
    for states, mask, row in zip(grouped, ask.mask, plain, strict=True):
        torch.testing.assert_close(states[mask], row, atol=1e-5, rtol=1e-5)
    sum((s[m] * w).sum() for s, m, w in zip(grouped, ask.mask, weights, strict=True)).backward()
    own = [parameter.grad.clone() for parameter in model.text_encoder.parameters()]
    model.zero_grad()
    sum((row * w).sum() for row, w in zip(plain, weights, strict=True)).backward()
    assert relative_difference([shared.grad], [alone.grad]) <= 1e-5
    assert relative_difference(own, [parameter.grad for parameter in model.text_encoder.parameters()]) <= 1e-5


def test_the_decoder_equals_the_plain_one_and_does_not_read_padding() -> None:
    model, ask = tiny_blip(), questions()
    tokens = torch.randn(len(ROWS), 17, 24)
    states = encode_text(model.text_encoder, ask.ids, ask.mask, tokens, grouping_of(ask))
    logits = decode_text(model.text_decoder, ask.targets.ids, states, ask.mask)
    for row, (ids, plain) in enumerate(zip(ask.targets.ids, plain_rows(model, tokens, ask), strict=True)):
        expected = model.text_decoder(ids[None], encoder_hidden_states=plain[None]).logits
        assert relative_difference([logits[row]], [expected[0]]) <= 1e-5


def test_generation_equals_transformers_greedy_search_question_by_question() -> None:
    model, ask = tiny_blip(), questions(seed=4)
    tokens = torch.randn(len(ROWS), 17, 24)
    states = encode_text(model.text_encoder, ask.ids, ask.mask, tokens, grouping_of(ask))
    ids = {"start_id": 5, "end_id": 3, "pad_id": 0}
    generated = generate_greedily(model.text_decoder, states, ask.mask, **ids, max_tokens=7)
    assert len(generated.unique(dim=0)) > 1, "a model that always says the same proves nothing"
    for row, plain in zip(generated, plain_rows(model, tokens, ask), strict=True):
        expected = model.text_decoder.generate(
            input_ids=torch.tensor([[5]]),
            encoder_hidden_states=plain[None],
            eos_token_id=3,
            pad_token_id=0,
            do_sample=False,
            max_new_tokens=7,
        )[0, 1:]
        assert row[: len(expected)].tolist() == expected.tolist()
        assert not row[len(expected) :].any()


def test_generation_stops_when_every_answer_has_ended() -> None:
    model, ask = tiny_blip(), questions()
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[3] = 100.0  # tied to the decoder's bias: [SEP] always wins
    states = torch.randn(sum(ROWS), 8, 24)
    ids = {"start_id": 5, "end_id": 3, "pad_id": 0}
    assert generate_greedily(model.text_decoder, states, ask.mask, **ids, max_tokens=9).tolist() == [[3]] * sum(ROWS)


@pytest.mark.parametrize("training", [True, False])
def test_checkpointing_changes_neither_output_nor_gradient_also_in_evaluation_mode(training: bool) -> None:
    model, ask = tiny_blip(), questions()
    model.train(training)
    results = []
    for checkpointing in (False, True):
        tokens = torch.randn(len(ROWS), 17, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
        args = (ask.ids, ask.mask, tokens, grouping_of(ask))
        states = encode_text(model.text_encoder, *args, checkpointing=checkpointing)
        logits = decode_text(model.text_decoder, ask.targets.ids, states, ask.mask, checkpointing=checkpointing)
        logits.square().sum().backward()
        results.append((logits.detach(), tokens.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_state_dicts_keep_the_names_of_transformers() -> None:
    for kind in (BlipForQuestionAnswering, BlipForImageTextRetrieval):
        model = tiny_blip(kind)
        tokens, ask = torch.randn(len(ROWS), 17, 24), questions()
        before = set(model.state_dict())
        encode_text(model.text_encoder, ask.ids, ask.mask, tokens, grouping_of(ask))
        assert set(model.state_dict()) == before


@pytest.mark.parametrize("more", [0, 3, 10_000])
def test_only_the_tokens_that_are_there_are_computed_and_computing_more_changes_nothing(more: int) -> None:
    model, ask = tiny_blip(), questions()
    tokens = torch.randn(len(ROWS), 17, 24, generator=torch.Generator().manual_seed(1))
    asked = (ask.ids, ask.mask, tokens, grouping_of(ask))
    present, computed = int(ask.mask.sum()), []
    dense = model.text_encoder.encoder.layer[0].intermediate.dense
    dense.register_forward_hook(lambda _, inputs, __: computed.append(inputs[0].shape[0]))
    expected = encode_text(model.text_encoder, *asked)
    found = encode_text(model.text_encoder, *asked, num_tokens=present + more)
    assert present < ask.mask.numel()
    assert computed == [present, min(present + more, ask.mask.numel())]
    mask = ask.mask[..., None]
    torch.testing.assert_close(found * mask, expected, atol=1e-6, rtol=1e-5)
