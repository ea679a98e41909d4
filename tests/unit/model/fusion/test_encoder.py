"""Width adapters around a fusion: present exactly where widths ask for them, and every one of them trained."""

import pytest
import torch
from torch import nn

from model.fusion.concatenation import ConcatenationEncoder
from model.fusion.difnet import DifnetEncoder
from model.fusion.encoder import FusionEncoder, PlainSum
from shards.errors import ConfigError


def difnet(width=16, **sizes):
    return DifnetEncoder(width=width, heads=4, ffn_width=32, **sizes)


def concatenation():
    return ConcatenationEncoder(width=16, heads=4, ffn_width=32, layers=2, dropout=0.0)


def build(fusion, *, width_a=16, width_b=12, width=16, out_width=16):
    torch.manual_seed(0)
    return FusionEncoder(fusion, width_a=width_a, width_b=width_b, width=width, out_width=out_width).eval()


def tokens(width, seed=0):
    return torch.randn(2, 5, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fusion", [difnet, concatenation, PlainSum])
@pytest.mark.parametrize(("width_a", "out_width"), [(16, 16), (10, 16), (16, 20), (10, 20)])
def test_output_has_the_asked_width_and_every_parameter_a_gradient(fusion, width_a, out_width):
    encoder = build(fusion(), width_a=width_a, out_width=out_width)
    output = encoder(tokens(width_a), tokens(12))
    assert output.shape == (2, 5, out_width)
    (output * torch.randn_like(output)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_adapters_exist_only_where_widths_differ_or_another_network_speaks():
    encoder = build(difnet(), width_b=16)
    assert not list(encoder.adapter_a.parameters())
    assert not list(encoder.output.parameters())
    assert [type(part) for part in encoder.adapter_b] == [nn.Linear, nn.ReLU, nn.Dropout, nn.LayerNorm]


def test_at_equal_widths_stream_a_enters_the_fusion_untouched():
    encoder = build(difnet())
    a, b = tokens(16), tokens(12, seed=1)
    torch.testing.assert_close(encoder(a, b), encoder.fusion(a, encoder.adapter_b(b)), atol=0, rtol=0)


def test_plain_sum_is_stream_a_plus_one_linear_of_stream_b():
    encoder = build(PlainSum())
    a, b = tokens(16), tokens(12, seed=1)
    expected = a + b @ encoder.adapter_b.weight.T + encoder.adapter_b.bias
    torch.testing.assert_close(encoder(a, b), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fusion", [lambda: difnet(second_stream=False), PlainSum])
def test_single_stream_trains_every_parameter(fusion):
    encoder = build(fusion(), width_a=10, width_b=None)
    output = encoder(tokens(10))
    (output * torch.randn_like(output)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_masks_reach_the_fusion():
    mask = torch.tensor([[False, False, True, False, True]] * 2)
    for fusion in (difnet(), PlainSum()):
        encoder = build(fusion)
        a, b = tokens(16), tokens(12, seed=1)
        noisy_b = b.masked_fill(mask[..., None], 9.0)
        assert torch.equal(encoder(a, b, mask, mask)[~mask], encoder(a, noisy_b, mask, mask)[~mask])


def test_widths_and_streams_that_contradict_the_fusion_are_refused():
    with pytest.raises(ConfigError, match="width 16 around a fusion of width 32"):
        build(difnet(width=32))
    with pytest.raises(ConfigError, match="build it with second_stream=False"):
        build(difnet(), width_b=None)
    with pytest.raises(ConfigError, match="build it with second_stream=True"):
        build(difnet(second_stream=False))
    with pytest.raises(ConfigError, match="got one stream, but was built for two"):
        build(difnet())(tokens(16))
    with pytest.raises(ConfigError, match="got two streams, but was built for one"):
        build(difnet(second_stream=False), width_b=None)(tokens(16), tokens(12))
    with pytest.raises(ConfigError, match="same token count"):
        build(PlainSum())(tokens(16), tokens(12)[:, :4])


def test_bfloat16_runs_end_to_end():
    encoder = build(difnet(), width_a=10, out_width=20).to(torch.bfloat16)
    output = encoder(tokens(10).bfloat16(), tokens(12).bfloat16())
    assert output.dtype == torch.bfloat16
    assert output.isfinite().all()


def test_concatenation_reads_both_streams_through_one_linear_and_then_layers():
    fusion = concatenation().eval()
    a, b = tokens(16), tokens(16, seed=1)
    mixed = torch.cat([a, b], dim=-1) @ fusion.mix.weight.T + fusion.mix.bias
    for layer in fusion.layers:
        mixed = layer(mixed, None, False)
    torch.testing.assert_close(fusion(a, b), mixed)


def test_concatenation_counts_masked_tokens_of_the_second_stream_as_nothing():
    fusion = concatenation().eval()
    a, b = tokens(16), tokens(16, seed=1)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[:, 3:] = True
    blank = b.masked_fill(mask[..., None], 0.0)
    torch.testing.assert_close(fusion(a, b, None, mask), fusion(a, blank))
    other = torch.where(mask[..., None], torch.randn_like(b), b)
    torch.testing.assert_close(fusion(a, other, None, mask), fusion(a, blank))
    moved = torch.where(mask[..., None], torch.randn_like(a), a)
    torch.testing.assert_close(fusion(moved, b, mask)[:, :3], fusion(a, b, mask)[:, :3])


def test_concatenation_of_one_stream_is_refused():
    with pytest.raises(ConfigError, match=r"concatenation needs two streams of one shape, got one stream"):
        concatenation()(tokens(16))
    with pytest.raises(ConfigError, match=r"got \(2, 5, 16\) and \(2, 4, 16\)"):
        concatenation()(tokens(16), tokens(16)[:, :4])


def test_concatenation_recomputes_the_same_gradients():
    a, b = tokens(16).requires_grad_(), tokens(16, seed=1)
    grads = []
    for again in (False, True):
        torch.manual_seed(0)
        fusion = ConcatenationEncoder(
            width=16, heads=4, ffn_width=32, layers=2, dropout=0.0, gradient_checkpointing=again
        )
        fusion(a, b).square().sum().backward()
        grads.append([parameter.grad for parameter in fusion.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
