"""EfficientSAM's mask decoder: shapes for any sizes, both masks and IoU depend on prompt and image."""

from dataclasses import replace

import pytest
import torch

from model.efficient_sam.decoder import MaskDecoder, MaskDecoderConfig
from shards.errors import ConfigError

SMALL = MaskDecoderConfig(heads=2, mlp_width=24, upscaling_widths=(8, 4), iou_width=12)


def small_decoder(config=SMALL):
    torch.manual_seed(0)
    return MaskDecoder(config, width=16)


def some_inputs(rows=2, height=3, width=5):
    generator = torch.Generator().manual_seed(1)
    shapes = ((rows, 16, height, width), (1, 16, height, width), (rows, 4, 16))
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("widths", [(4,), (8, 4), (8, 6, 4)])
@pytest.mark.parametrize("masks", [1, 3])
def test_each_upscaling_doubles_the_map(widths, masks):
    config = replace(SMALL, upscaling_widths=widths, num_masks=masks)
    logits, iou = small_decoder(config)(*some_inputs())
    assert logits.shape == (2, masks, 3 * config.upscaling, 5 * config.upscaling)
    assert iou.shape == (2, masks)
    assert config.upscaling == 2 ** len(widths)


def test_a_gradient_reaches_everything_but_the_head_of_the_single_mask():
    decoder = small_decoder()
    inputs = [value.requires_grad_() for value in some_inputs()]
    logits, iou = decoder(*inputs)
    ((logits * torch.randn_like(logits)).sum() + (iou * torch.randn_like(iou)).sum()).backward()
    silent = {name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()}
    # a bias of keys shifts every logit of a query alike: softmax does not see it
    unused = {name for name in silent if not name.endswith("k_proj.bias")}
    assert unused == {
        f"output_hypernetworks_mlps.0.{name}" for name, _ in decoder.output_hypernetworks_mlps[0].named_parameters()
    }
    assert all(value.grad.any() for value in inputs)


def test_the_order_of_prompt_tokens_does_not_matter():
    decoder, (features, positions, prompts) = small_decoder(), some_inputs()
    found = decoder(features, positions, prompts)
    turned = decoder(features, positions, prompts.flip(1))
    torch.testing.assert_close(turned.logits, found.logits)
    torch.testing.assert_close(turned.iou, found.iou)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"upscaling_widths": (8, 0)}, r"upscaling_widths is \(8, 0\)"),
        ({"upscaling_widths": ()}, r"upscaling_widths is \(\)"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_name(sizes, named):
    with pytest.raises(ConfigError, match=named):
        replace(SMALL, **sizes)
