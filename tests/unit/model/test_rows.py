"""Rows of text are laid out and taken back without a change."""

import torch

from model.rows import Grouping, Words


def test_packing_keeps_every_row_and_unpacking_returns_it() -> None:
    image = torch.tensor([0, 0, 1, 2, 2, 2])
    grouping = Grouping.of(image, num_images=3, rows_per_image=3)
    rows = torch.randn(6, 4, 5)
    packed = grouping.pack(rows)
    assert packed.shape == (3, 12, 5)
    assert torch.equal(grouping.unpack(packed, 4), rows)
    assert torch.equal(packed[1, :4], rows[2])
    assert not packed[1, 4:].any()


def test_words_are_the_tokens_that_the_mask_shows_in_order_and_padding_comes_back_as_zero():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)
    padded = torch.randn(3, 3, 4)
    words = Words.of(mask, 6)
    assert torch.equal(words.pack(padded), padded[mask])
    assert torch.equal(words.unpack(words.pack(padded)), padded * mask[..., None])


def test_words_may_be_said_to_be_more_than_they_are():
    mask, padded = torch.tensor([[1, 0], [1, 1]], dtype=torch.bool), torch.randn(2, 2, 4)
    words = Words.of(mask, 4)
    assert torch.equal(words.unpack(words.pack(padded)), padded)
