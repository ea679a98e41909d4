"""The second stream: pixels to a map, and the map to tokens that line up with the first tower's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.efficient_sam.encoder import EfficientSamEncoder, EfficientSamEncoderConfig
from model.looking.second_stream import EfficientSamStream, GridTokens

CONFIG = EfficientSamEncoderConfig(image_size=64, patch_size=16, width=24, depth=1, heads=3, neck_width=16)


def test_uint8_pixels_reach_the_encoder_as_fractions():
    torch.manual_seed(0)
    stream = EfficientSamStream(EfficientSamEncoder(CONFIG))
    pixels = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    found = stream(pixels)
    assert found.shape == (2, stream.width, 4, 4)
    assert torch.equal(found, stream.encoder(pixels.to(torch.float32) / 255))


def test_slot_zero_is_the_class_token_and_cells_follow_row_by_row():
    tokens = GridTokens(grid=2, width=3)
    features = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(2, 3, 4, 4)
    found = tokens(features)
    assert found.shape == (2, 5, 3)
    assert torch.equal(found[:, :1], tokens.class_token.expand(2, 1, 3))
    corners = [(0, 0), (0, 2), (2, 0), (2, 2)]
    cells = [features[:, :, row : row + 2, column : column + 2].mean((2, 3)) for row, column in corners]
    torch.testing.assert_close(found[:, 1:], torch.stack(cells, 1))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_pooling_keeps_the_range_of_the_map_for_any_sizes(grid, height, width, seed):
    features = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    cells = GridTokens(grid, 3)(features)[:, 1:]
    assert cells.shape == (2, grid * grid, 3)
    lowest, highest = features.amin((2, 3)), features.amax((2, 3))
    assert (cells >= lowest[:, None] - 1e-5).all()
    assert (cells <= highest[:, None] + 1e-5).all()


@pytest.mark.parametrize("side", [2, 5, 6])
def test_orientation_survives_pooling_and_interpolation(side):
    rows = torch.arange(side, dtype=torch.float32)[None, None, :, None].expand(1, 1, side, side)
    cells = GridTokens(3, 1)(rows)[0, 1:, 0].view(3, 3)
    assert (cells.diff(dim=0) > 0).all()
    torch.testing.assert_close(cells.diff(dim=1), torch.zeros(3, 2))


def test_a_map_of_the_grids_own_size_passes_unchanged():
    features = torch.randn(2, 3, 4, 4)
    assert torch.equal(GridTokens(4, 3)(features)[:, 1:], features.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("side", [2, 5])
def test_gradients_reach_the_class_token_and_the_map(side):
    tokens = GridTokens(3, 4)
    features = torch.randn(2, 4, side, side, requires_grad=True)
    tokens(features).square().sum().backward()
    assert tokens.class_token.grad.any()
    assert features.grad.all()


@pytest.mark.parametrize("side", [2, 5])
@pytest.mark.parametrize("frozen", [torch.float32, torch.bfloat16, torch.float16])
def test_tokens_have_the_precision_of_the_trained_part(frozen, side):
    tokens = GridTokens(3, 4).to(torch.bfloat16)
    found = tokens(torch.randn(2, 4, side, side).to(frozen))
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()
