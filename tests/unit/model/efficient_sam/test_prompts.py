"""EfficientSAM's prompt encoder: positions in fp32 at any precision, padding to a fixed number of points."""

import pytest
import torch

from model.efficient_sam.prompts import FourierPositions, PromptEncoder


def small_prompts(max_points=4):
    torch.manual_seed(0)
    return PromptEncoder(width=16, image_size=64, max_points=max_points).requires_grad_(False)


def some_points(rows=3, points=4):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(rows, points, 2, generator=generator) * torch.tensor([80.0, 48.0])


def test_a_place_has_the_same_code_whatever_the_size_of_the_image():
    prompts, points = small_prompts(), some_points()
    labels = torch.ones(3, 4, dtype=torch.int64)
    pixels = prompts(points, labels, (48, 80))
    torch.testing.assert_close(prompts(points * 3, labels, (144, 240)), pixels)
    torch.testing.assert_close(prompts(points / torch.tensor([80.0, 48.0]), labels, (1.0, 1.0)), pixels)


def test_horizontal_and_vertical_are_told_apart_as_in_the_grid_of_cells():
    prompts = small_prompts(max_points=1)
    prompts.invalid_points.weight.zero_()
    centre = torch.tensor([[[5.0, 2.0]]]) * 8 + 3.5  # pixel 3.5 of 8 is the centre of column 5 and row 2
    token = prompts(centre, -torch.ones(1, 1, dtype=torch.int64), (64, 64))
    torch.testing.assert_close(token[0, 0], prompts.pe_layer.grid(8, 8)[0, :, 2, 5])


def test_codes_are_sines_and_cosines_of_random_frequencies():
    positions = FourierPositions(width=6)
    place = torch.tensor([0.3, 0.9])
    phases = 2 * torch.pi * (2 * place - 1) @ positions.positional_encoding_gaussian_matrix
    torch.testing.assert_close(positions(place), torch.cat([phases.sin(), phases.cos()]))


def test_missing_points_are_padding_and_surplus_ones_are_dropped():
    prompts, points = small_prompts(), some_points(points=6)
    labels = torch.ones(3, 6, dtype=torch.int64)
    padded = prompts(
        torch.cat([points[:, :3], -torch.ones(3, 1, 2)], dim=1), torch.tensor([[1, 1, 1, -1]]).expand(3, 4), (48, 80)
    )
    assert torch.equal(prompts(points[:, :3], labels[:, :3], (48, 80)), padded)
    assert torch.equal(prompts(points, labels, (48, 80)), prompts(points[:, :4], labels[:, :4], (48, 80)))
    assert prompts(points[:, :0], labels[:, :0], (48, 80)).shape == (3, 4, 16)


def test_each_label_adds_its_own_embedding_and_an_unknown_one_nothing():
    prompts = small_prompts(max_points=5)
    place = torch.full((1, 5, 2), 20.0)
    tokens = prompts(place, torch.tensor([[0, -1, 1, 2, 3]]), (48, 80))[0]
    embeddings = (
        prompts.invalid_points,
        prompts.point_embeddings,
        prompts.bbox_top_left_embeddings,
        prompts.bbox_bottom_right_embeddings,
    )
    torch.testing.assert_close(tokens[1:] - tokens[0], torch.cat([embedding.weight for embedding in embeddings]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_the_result_and_not_the_frequencies(dtype):
    positions = FourierPositions(width=256)
    grid = positions.grid(64, 64)
    assert torch.equal(positions.to(dtype).grid(64, 64), grid)
    points, labels = some_points(), torch.ones(3, 4, dtype=torch.int64)
    found = small_prompts().to(dtype)(points, labels, (48, 80))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), small_prompts()(points, labels, (48, 80)), atol=0.02, rtol=0.01)


def test_autocast_does_not_reach_the_positions():
    positions = FourierPositions(width=16)
    with torch.autocast("cpu", torch.bfloat16):
        found = positions.grid(8, 8)
    assert torch.equal(found, positions.grid(8, 8))
