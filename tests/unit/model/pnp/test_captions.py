"""Captions: the plain decoder's over the patches drawn, the same for any batch, without repetition and without end."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BlipForConditionalGeneration, BlipForQuestionAnswering

from model.config import CaptionConfig
from model.pixels import blip_pixels
from model.pnp.captions import (
    Captioner,
    is_new,
    load_captioner,
    resize_heatmaps,
    sample_cells,
    sample_top_k,
)
from model.towers.blip import decode_next, keys_values_read
from model.towers.tokenizer import build_tokenizer
from shards.errors import ConfigError, DataError
from tests.models import IMAGE_SIZE, WORDS, tiny_blip, tiny_captioner

GRID = 4
PROMPT = [5, 7, 1, 54]
"""[DEC] a [UNK] of"""
END, PAD = 3, 0


class RecordingTokenizer:
    """A tokenizer that remembers what it was asked to decode."""

    def __init__(self) -> None:
        self.plain, self.decoded = build_tokenizer(WORDS, vocab_size=60), []

    def __call__(self, *args: object, **options: object) -> object:
        return self.plain(*args, **options)

    def decode(self, ids: list[int], **options: object) -> str:
        self.decoded.append(ids)
        return self.plain.decode(ids, **options)


def captioner(
    model: BlipForConditionalGeneration | None = None, tokenizer: object = None, **config: object
) -> Captioner:
    sizes = {"num_captions": 6, "num_patches": 5, "max_tokens": 12, "min_tokens": 7, "top_k": 20, "rows_per_batch": 7}
    return Captioner(
        model or tiny_blip(BlipForConditionalGeneration),
        tokenizer or build_tokenizer(WORDS, vocab_size=60),
        CaptionConfig(**{**sizes, **config}),
    )


def favouring(bias: float) -> BlipForConditionalGeneration:
    """A model that likes to end a text, or not."""
    model = tiny_blip(BlipForConditionalGeneration)
    with torch.no_grad():
        model.text_decoder.cls.predictions.decoder.bias[END] = bias
    return model


def heatmaps(rows: int, *, hot: Sequence[int] | None = None, grid: int = GRID) -> Tensor:
    """(rows, grid, grid) of random heat; with `hot`, only so many cells of each have any."""
    generator = torch.Generator().manual_seed(1)
    heat = torch.rand(rows, grid * grid, generator=generator) + 0.05
    for row, count in enumerate(hot or ()):
        heat[row, torch.randperm(grid * grid, generator=generator)[count:]] = 0
    return heat.view(rows, grid, grid)


def image_tokens(images: int) -> Tensor:
    return torch.randn(images, 1 + GRID * GRID, 24, generator=torch.Generator().manual_seed(2))


def test_a_decoder_over_gathered_projections_equals_the_plain_one_over_gathered_tokens() -> None:
    model, tokens = tiny_blip(BlipForConditionalGeneration), image_tokens(2)
    patches = [torch.tensor([1, 4, 9]), torch.tensor([2, 3, 7, 11, 16])]
    ids = torch.randint(7, 60, (2, 9), generator=torch.Generator().manual_seed(3))
    places, drawn = torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 5, dtype=torch.bool)
    for row, chosen in enumerate(patches):
        places[row, : len(chosen)], drawn[row, : len(chosen)] = chosen, True
    rows = torch.arange(2)[:, None]
    read = [
        tuple(part.transpose(1, 2)[rows, places].transpose(1, 2) for part in layer)
        for layer in keys_values_read(model.text_decoder, tokens)
    ]
    logits, past = decode_next(model.text_decoder, ids[:, :4], None, read, drawn[:, None, None])
    for length in range(4, 10):
        for row, chosen in enumerate(patches):
            plain = model.text_decoder(ids[row : row + 1, :length], encoder_hidden_states=tokens[row, chosen][None])
            torch.testing.assert_close(logits[row], plain.logits[0, -1], atol=1e-5, rtol=1e-5)
        if length < 9:
            logits, past = decode_next(
                model.text_decoder, ids[:, length : length + 1], past, read, drawn[:, None, None]
            )


def test_the_likeliest_captions_equal_greedy_search_of_transformers_over_the_hot_patches() -> None:
    model, tokens, hot = favouring(2.0), image_tokens(2), (3, 5, 1, 4, 2, 5)
    heat, image = heatmaps(6, hot=hot), torch.tensor([0, 0, 1, 1, 0, 1])
    writer = captioner(model, RecordingTokenizer(), num_captions=1, top_k=1)
    writer.captions(tokens, image, heat, [f"q{row}" for row in range(6)], seed=0)
    for row, count in enumerate(hot):
        cells = heat[row].flatten().nonzero()[:, 0]
        assert len(cells) == count
        expected = model.text_decoder.generate(
            input_ids=torch.tensor([PROMPT]),
            encoder_hidden_states=tokens[image[row], cells + 1][None],
            do_sample=False,
            max_length=12,
            min_length=7,
            eos_token_id=END,
            pad_token_id=PAD,
        )[0, len(PROMPT) :].tolist()
        expected = expected[: expected.index(END)] if END in expected else expected
        assert writer._tokenizer.decoded[row] == expected
    assert len({tuple(ids) for ids in writer._tokenizer.decoded}) > 2, "the same for all rows would prove nothing"


def test_captions_do_not_depend_on_the_batch_its_order_or_its_size() -> None:
    tokens, image = image_tokens(3), torch.tensor([0, 2, 1, 0, 2, 2, 1, 0])
    heat, keys = heatmaps(8, hot=(16, 3, 16, 9, 16, 1, 16, 16)), [f"q{row}" for row in range(8)]
    together = captioner().captions(tokens, image, heat, keys, seed=4)
    assert sum(map(len, together)) > 30
    alone = [
        captioner(rows_per_batch=3).captions(
            tokens[image[[row]]], torch.tensor([0]), heat[[row]], keys[row : row + 1], seed=4
        )[0]
        for row in range(8)
    ]
    assert alone == together
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    shuffled = captioner(rows_per_batch=100).captions(
        tokens, image[order], heat[order], [keys[row] for row in order], seed=4
    )
    assert [shuffled[order.index(row)] for row in range(8)] == together


def test_another_seed_or_key_draws_other_captions() -> None:
    inputs = (image_tokens(1), torch.tensor([0, 0]), heatmaps(1).expand(2, -1, -1))
    first, second = captioner().captions(*inputs, ["a", "b"], seed=0)
    again, other = (captioner().captions(*inputs, ["a", "b"], seed=seed)[0] for seed in (0, 1))
    assert first == again
    assert len({tuple(first), tuple(second), tuple(other)}) == 3


@pytest.mark.parametrize(("bias", "length"), [(60.0, 7), (-60.0, 12)])
def test_a_caption_ends_neither_too_early_nor_too_late(bias: float, length: int) -> None:
    writer = captioner(favouring(bias), RecordingTokenizer())
    writer.captions(image_tokens(1), torch.tensor([0]), heatmaps(1), ["q"], seed=0)
    assert writer._tokenizer.decoded
    assert {len(PROMPT) + len(ids) for ids in writer._tokenizer.decoded} == {length}


def test_no_caption_is_a_part_of_an_earlier_one_and_none_is_empty() -> None:
    assert is_new("a red square", ["a blue square", "red"])
    assert not is_new("red", ["a red square"])
    assert not is_new("", [])
    rows = captioner(num_captions=30, top_k=3, max_tokens=7).captions(
        image_tokens(1), torch.tensor([0] * 3), heatmaps(3), ["a", "b", "c"], seed=0
    )
    for row in rows:
        assert 1 < len(row) <= 30
        for place, caption in enumerate(row):
            assert is_new(caption, row[:place])


def test_rounds_replace_repetitions_and_come_to_an_end() -> None:
    inputs = (image_tokens(1), torch.tensor([0]), heatmaps(1, hot=(1,)), ["q"])
    sizes = {"num_captions": 9, "top_k": 3, "max_tokens": 7}
    one, many = (captioner(**sizes, max_rounds=rounds).captions(*inputs, seed=0)[0] for rounds in (1, 10))
    assert len(one) < len(many) == 9
    assert many[: len(one)] == one
    hopeless = captioner(num_captions=12, top_k=1, max_rounds=3)
    assert len(hopeless.captions(*inputs, seed=0)[0]) == 1


def test_cells_are_drawn_without_replacement_in_proportion_to_their_heat() -> None:
    heat = np.array([0.0, 4.0, 1.0, 3.0, 2.0])
    share, draws = heat / heat.sum(), 40_000
    uniforms = np.random.default_rng(0).random((draws, 5))
    first, _ = sample_cells(np.tile(heat, (draws, 1)), uniforms, 1)
    np.testing.assert_allclose(np.bincount(first[:, 0], minlength=5) / draws, share, atol=0.01)
    two, drawn = sample_cells(np.tile(heat, (draws, 1)), uniforms, 2)
    assert drawn.all()
    assert (two[:, 0] < two[:, 1]).all(), "sorted, and no cell twice"
    expected = [
        share[cell] + sum(share[other] * share[cell] / (1 - share[other]) for other in range(5) if other != cell)
        for cell in range(5)
    ]
    np.testing.assert_allclose(np.bincount(two.ravel(), minlength=5) / draws, expected, atol=0.01)


def test_few_hot_cells_are_all_drawn_and_without_heat_every_cell_may_be() -> None:
    heat = np.zeros((3000, 6))
    heat[:1000, [1, 4]] = 1e-30
    heat[1000:2000] = 5.0
    cells, drawn = sample_cells(heat, np.random.default_rng(1).random((3000, 6)), 3)
    assert (cells[:1000] == [1, 4, 0]).all()
    assert (drawn[:1000] == [True, True, False]).all()
    assert drawn[1000:].all()
    for rows in (cells[1000:2000], cells[2000:]):
        np.testing.assert_allclose(np.bincount(rows.ravel(), minlength=6) / 1000, 0.5, atol=0.06)
    everything, _ = sample_cells(heat[2000:], np.random.default_rng(2).random((1000, 6)), 50)
    assert (everything == np.arange(6)).all()


def test_tokens_are_drawn_among_the_k_likeliest_by_their_probability() -> None:
    logits = torch.tensor([0.5, -torch.inf, 2.0, 1.0, 1.0, -3.0, 1.0, 0.9])
    draws = 1000
    uniforms = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    ids = sample_top_k(logits.expand(draws, -1), uniforms, 3)
    counts = torch.bincount(ids, minlength=8)
    chances = torch.tensor([2.0, 1.0, 1.0]).softmax(dim=0) * draws
    assert counts[[2, 3, 4]].sub(chances).abs().max() <= 1, "of three equal scores the two lower ids are among three"
    assert counts.sum() == counts[[2, 3, 4]].sum()
    assert ids.tolist() == sorted(ids.tolist(), key=[2, 3, 4].index), "descending, equal ones by id"


def test_equal_scores_are_taken_in_the_order_of_ids_wherever_the_bound_falls() -> None:
    generator = torch.Generator().manual_seed(6)
    logits = (torch.randn(40, 200, generator=generator) * 4).round() / 2
    uniforms = torch.rand(40, dtype=torch.float64, generator=generator)
    expected = []
    for row, uniform in zip(logits, uniforms, strict=True):
        likeliest = torch.tensor(sorted(range(200), key=lambda token, row=row: (-float(row[token]), token))[:30])
        cumulated = row[likeliest].softmax(dim=0).double().cumsum(dim=0)
        expected.append(int(likeliest[(cumulated > uniform * cumulated[-1]).nonzero()[0, 0]]))
    assert sample_top_k(logits, uniforms, 30).tolist() == expected


def test_a_forbidden_token_is_never_drawn_even_when_every_token_is_among_the_k() -> None:
    logits = torch.tensor([[-torch.inf, -0.0, 0.0]]).expand(3, -1)
    near_the_ends = torch.tensor([2.0**-33, 0.5 - 2.0**-33, 1 - 2.0**-33], dtype=torch.float64)
    assert sample_top_k(logits, near_the_ends, 50).tolist() == [1, 1, 2]


def test_heatmaps_of_another_grid_keep_their_place() -> None:
    fine = torch.zeros(1, 8, 8)
    fine[0, 4:6, 6:8] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    coarse = resize_heatmaps(fine, 4)
    assert coarse[0, 2, 3] == 2.5
    assert coarse.sum() == 2.5
    assert torch.equal(resize_heatmaps(fine, 8), fine)
    larger = resize_heatmaps(coarse, 8)
    assert larger.argmax() // 8 in (4, 5)
    assert larger.min() == 0
    torch.testing.assert_close(resize_heatmaps(torch.full((2, 3, 3), 0.7), 5), torch.full((2, 5, 5), 0.7))
    inputs = (image_tokens(1), torch.tensor([0]))
    finer = heatmaps(1).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    assert captioner().captions(*inputs, finer, ["q"], seed=0) == captioner().captions(
        *inputs, heatmaps(1), ["q"], seed=0
    )


def test_image_tokens_are_the_plain_vision_transformers_of_pixels_of_any_size() -> None:
    writer = captioner()
    assert writer.grid == GRID
    for size in (IMAGE_SIZE, 48):
        pixels = torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(5)).to(torch.uint8)
        plain = tiny_blip(BlipForConditionalGeneration).vision_model(blip_pixels(pixels, IMAGE_SIZE, torch.float32))
        torch.testing.assert_close(writer.image_tokens(pixels), plain.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_a_captioner_in_half_precision_writes_captions() -> None:
    writer = captioner()
    writer.place(torch.device("cpu"), torch.bfloat16)
    pixels = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    tokens = writer.image_tokens(pixels)
    assert tokens.dtype == torch.bfloat16
    assert len(writer.captions(tokens, torch.tensor([0]), heatmaps(1), ["q"], seed=0)[0]) == 6


def test_a_checkpoint_writes_the_captions_of_the_model_that_was_saved(tmp_path: Path) -> None:
    inputs = (image_tokens(1), torch.tensor([0]), heatmaps(1), ["q"])
    config = captioner().config
    loaded = load_captioner(tiny_captioner(tmp_path), config)
    assert loaded.captions(*inputs, seed=0) == captioner().captions(*inputs, seed=0)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected config\.json"):
        load_captioner(str(tmp_path / "nothing"))
    tiny_blip(BlipForQuestionAnswering).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a BlipForQuestionAnswering; expected BlipForConditionalGeneration"):
        load_captioner(str(tmp_path))


def test_lengths_that_leave_no_room_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"captions\.max_tokens: 4; expected more than the 4 tokens"):
        captioner(max_tokens=4, min_tokens=1)
    with pytest.raises(ConfigError, match="at most the 32 positions"):
        captioner(max_tokens=33)
    with pytest.raises(ConfigError, match=r"pnp\.captions\.min_tokens: 7, more than max_tokens 6"):
        captioner(max_tokens=6)
