"""The whole segmenter: the original's masks and key names, one encoding per image, rows that do not see each other."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from model.efficient_sam import segmenter as segmenter_module
from model.efficient_sam.decoder import MaskDecoderConfig
from model.efficient_sam.encoder import EfficientSamEncoder, EfficientSamEncoderConfig
from model.efficient_sam.segmenter import SEGMENTER_CONFIGS, Segmenter, SegmenterConfig
from model.efficient_sam.weights import load_segmenter
from shards.errors import ConfigError

GOLDEN = Path(__file__).parents[3] / "golden"
SMALL = SegmenterConfig(
    encoder=EfficientSamEncoderConfig(image_size=64, patch_size=16, width=24, depth=1, heads=3, neck_width=16),
    decoder=MaskDecoderConfig(heads=2, mlp_width=24, upscaling_widths=(8, 4), iou_width=12),
    max_points=4,
)


@pytest.fixture
def segmenter():
    torch.manual_seed(0)
    return Segmenter(SMALL).requires_grad_(False)


@pytest.fixture
def golden():
    weights = load_segmenter(GOLDEN / "efficient_sam_tiny.weights.safetensors").requires_grad_(False)
    return weights, load_file(GOLDEN / "efficient_sam_tiny.io.safetensors")


def some_images(images=3):
    return torch.rand(images, 3, 48, 80, generator=torch.Generator().manual_seed(1))


def some_rows(rows=7, images=3, points=3):
    """image_of_row, points in [0, 1] and labels; rows have one point to `points` of them."""
    generator = torch.Generator().manual_seed(2)
    counts = torch.randint(1, points + 1, (rows, 1), generator=generator)
    return (
        torch.randint(images, (rows,), generator=generator),
        torch.rand(rows, points, 2, generator=generator),
        torch.where(torch.arange(points) < counts, 1, -1),
    )


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_original_weights_give_the_original_masks(golden):
    segmenter, io = golden
    embeddings = segmenter.encode(io["images"])
    found = segmenter.predict(embeddings, io["points"], io["point_labels"].long(), (96, 160))
    torch.testing.assert_close(embeddings, io["image_embeddings"], atol=1e-4, rtol=1e-4)
    # the masks deviate by only 0.04: a wider tolerance would let small mistakes pass
    torch.testing.assert_close(segmenter.resize_masks(found.logits, (96, 160)), io["masks"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.iou, io["iou_predictions"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("variant", "parameters"), [("vitt", 10_223_204), ("vits", 26_413_028)])
def test_keys_and_shapes_are_those_of_the_official_checkpoints(variant, parameters):
    official = json.loads((GOLDEN / f"efficient_sam_{variant}.keys.json").read_text())
    with torch.device("meta"):
        segmenter = Segmenter(SEGMENTER_CONFIGS[variant])
    assert {name: list(value.shape) for name, value in segmenter.state_dict().items()} == official
    assert sum(p.numel() for p in segmenter.parameters()) == parameters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_full_precision(golden, dtype):
    segmenter, io = golden
    points, labels = io["points"], io["point_labels"].long()
    full = segmenter.predict(segmenter.encode(io["images"]), points, labels, (96, 160))
    half = segmenter.to(dtype)
    found = half.predict(half.encode(io["images"]), points, labels, (96, 160))
    assert half.mask_decoder.iou_token.weight.dtype == dtype
    assert found.logits.dtype == found.iou.dtype == torch.float32
    spread = full.logits.std().item()
    torch.testing.assert_close(found.logits, full.logits, atol=0.2 * spread, rtol=0)
    torch.testing.assert_close(found.iou, full.iou, atol=0.01, rtol=0)


def test_a_shared_encoder_may_run_in_another_precision(segmenter):
    rows = some_rows()
    embeddings = segmenter.encode(some_images())
    expected = segmenter.masks_for(embeddings.bfloat16().float(), *rows)
    assert_same(segmenter.masks_for(embeddings.bfloat16(), *rows), expected)


def test_a_given_image_encoder_is_shared_and_brings_its_sizes():
    encoder = EfficientSamEncoder(SMALL.encoder)
    segmenter = Segmenter(SegmenterConfig(decoder=SMALL.decoder), encoder)
    assert segmenter.image_encoder is encoder
    assert segmenter.config.encoder == SMALL.encoder
    assert segmenter.masks_for(segmenter.encode(some_images()), *some_rows())[0].shape == (7, 16, 16)


def test_the_best_mask_of_a_row_is_that_of_the_prediction_with_the_highest_iou(segmenter):
    embeddings = segmenter.encode(some_images())
    image_of_row, points, labels = some_rows()
    logits, iou = segmenter.masks_for(embeddings, image_of_row, points, labels)
    pixels = torch.where(labels.unsqueeze(-1) == 1, points * torch.tensor([80.0, 48.0]), -1.0)
    for row, image in enumerate(image_of_row.tolist()):
        every = segmenter.predict(embeddings[image][None], pixels[row][None, None], labels[row][None, None], (48, 80))
        best = every.iou.argmax()
        assert_same((logits[row], iou[row]), (every.logits[0, 0, best], every.iou[0, 0, best]))


def test_an_image_is_encoded_once_and_its_embedding_repeated_only_for_the_rows_of_one_part(segmenter, monkeypatch):
    monkeypatch.setattr(segmenter_module, "CELLS_AT_ONCE", 3 * 16)  # 3 rows of 4 x 4 cells
    encoded, decoded = [], []
    segmenter.image_encoder.register_forward_hook(lambda _module, args, _out: encoded.append(len(args[0])))
    segmenter.mask_decoder.register_forward_hook(lambda _module, args, _out: decoded.append(len(args[0])))
    segmenter.masks_for(segmenter.encode(some_images()), *some_rows(rows=11))
    assert encoded == [3]
    assert decoded == [3, 3, 3, 2]


@pytest.mark.parametrize("rows_at_once", [1, 2, 7])
def test_the_parts_in_which_rows_are_decoded_change_nothing(segmenter, monkeypatch, rows_at_once):
    embeddings, rows = segmenter.encode(some_images()), some_rows()
    expected = segmenter.masks_for(embeddings, *rows)
    monkeypatch.setattr(segmenter_module, "CELLS_AT_ONCE", rows_at_once * 16)
    assert_same(segmenter.masks_for(embeddings, *rows), expected)


def test_permuting_rows_permutes_results(segmenter):
    embeddings, rows = segmenter.encode(some_images()), some_rows()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    expected = [value[order] for value in segmenter.masks_for(embeddings, *rows)]
    assert_same(segmenter.masks_for(embeddings, *(value[order] for value in rows)), expected)


def test_a_row_does_not_depend_on_the_rows_and_images_beside_it(segmenter):
    image_of_row, points, labels = some_rows()
    logits, iou = segmenter.masks_for(segmenter.encode(some_images()), image_of_row, points, labels)
    for row in range(7):
        image = some_images()[image_of_row[row]][None]
        alone = segmenter.masks_for(
            segmenter.encode(image), torch.zeros(1, dtype=torch.int64), points[row][None], labels[row][None]
        )
        assert_same(alone, (logits[row][None], iou[row][None]))


def test_neither_the_amount_nor_the_content_of_padding_matters(segmenter):
    embeddings = segmenter.encode(some_images())
    image_of_row, points, labels = some_rows()
    expected = segmenter.masks_for(embeddings, image_of_row, points, labels)
    labels = F.pad(labels, (0, 5), value=-1)
    points = F.pad(points, (0, 0, 0, 5)).where(labels.unsqueeze(-1) == 1, torch.nan)
    assert_same(segmenter.masks_for(embeddings, image_of_row, points, labels), expected)


def test_points_beyond_the_most_that_the_decoder_reads_are_dropped(segmenter):
    embeddings = segmenter.encode(some_images())
    image_of_row, points, _ = some_rows(points=6)
    labels = torch.ones(7, 6, dtype=torch.int64)
    expected = segmenter.masks_for(embeddings, image_of_row, points[:, :4], labels[:, :4])
    assert_same(segmenter.masks_for(embeddings, image_of_row, points, labels), expected)


def test_a_point_moves_the_mask(segmenter):
    embeddings = segmenter.encode(some_images())
    one, other = (
        segmenter.predict(embeddings, torch.full((3, 1, 1, 2), at), torch.ones(3, 1, 1, dtype=torch.int64), (48, 80))
        for at in (4.0, 40.0)
    )
    assert (one.logits - other.logits).abs().max() > 1e-3


def test_no_rows_give_no_masks(segmenter):
    embeddings = segmenter.encode(some_images())
    logits, iou = segmenter.masks_for(embeddings, *(value[:0] for value in some_rows()))
    assert logits.shape == (0, 16, 16)
    assert iou.shape == (0,)
    assert segmenter.resize_masks(logits, (48, 80)).shape == (0, 48, 80)


def test_masks_are_resized_alike_whatever_stands_before_their_sides(segmenter):
    logits = torch.randn(2, 5, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    resized = segmenter.resize_masks(logits, (48, 80))
    assert resized.shape == (2, 5, 3, 48, 80)
    assert torch.equal(segmenter.resize_masks(logits[1, 4], (48, 80)), resized[1, 4])


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"max_points": 0}, "max_points is 0"),
        ({"decoder": MaskDecoderConfig(heads=16)}, "neck_width 16 is not a multiple of 2 x 16 heads"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_name(sizes, named):
    with pytest.raises(ConfigError, match=named):
        SegmenterConfig(encoder=SMALL.encoder, **sizes)
