"""The fusion encoder: the original's numbers, the properties its equations imply, and masks that hold."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F

from model.fusion.difnet import DifnetEncoder, attention_mask
from shards.errors import ConfigError, DataError

GOLDEN = Path(__file__).parents[3] / "golden"
WEIGHTS = GOLDEN / "difnet_encoder.weights.safetensors"
quick = settings(max_examples=15, deadline=None)


def small_encoder(*, seed=0, private_norms_differ=False, train=False, **sizes):
    torch.manual_seed(seed)
    sizes = {"width": 16, "heads": 4, "ffn_width": 32, "layers": 3, "separate_layers": 1, "repeats": 2} | sizes
    encoder = DifnetEncoder(**sizes).train(train)
    if private_norms_differ:
        for name, parameter in encoder.named_parameters():
            if "norm" in name:
                torch.nn.init.normal_(parameter)
    return encoder


def two_streams(batch=2, tokens=6, width=16, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, tokens, width, generator=generator).unbind()


def golden_encoder():
    with safe_open(WEIGHTS, "pt") as file:
        sizes = {name: int(value) for name, value in file.metadata().items()}
    assert sizes["d_k"] * sizes["h"] == sizes["d_model"]
    return DifnetEncoder(
        width=sizes["d_model"],
        heads=sizes["h"],
        ffn_width=sizes["d_ff"],
        layers=sizes["N"],
        separate_layers=sizes["Lf"],
        repeats=sizes["T"],
    ).eval()


def test_original_weights_give_the_original_output():
    encoder = golden_encoder()
    encoder.load_original_state(load_file(WEIGHTS))
    io = load_file(GOLDEN / "difnet_encoder.io.safetensors")
    torch.testing.assert_close(encoder(io["stream_a"], io["stream_b"]), io["fused"], atol=1e-5, rtol=1e-5)


def test_loading_original_weights_names_exactly_the_dead_norms_it_drops():
    dropped = golden_encoder().load_original_state(load_file(WEIGHTS))
    always = {f"layers.{i}.mhatt.layer_norm1" for i in range(4)}
    after_the_sum = {f"layers.{i}.{norm}" for i in (2, 3) for norm in ("lnorm1", "pwff.layer_norm1")}
    assert sorted(dropped) == sorted(f"{n}.{part}" for n in always | after_the_sum for part in ("weight", "bias"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("layers.1.lnorm1.weight"), "missing layers.1.lnorm1.weight"),
        (lambda state: state.update({"head.weight": torch.zeros(1)}), "unexpected head.weight"),
        (lambda state: state.update({"layers.9.lnorm.weight": torch.zeros(48)}), "unexpected layers.9.lnorm.weight"),
        (lambda state: state.update({"layers.0.lnorm.bias": torch.zeros(7)}), r"layers.0.lnorm.bias is \(7,\)"),
    ],
)
def test_original_weights_that_do_not_fit_are_refused_by_name(change, named):
    state = load_file(WEIGHTS)
    change(state)
    with pytest.raises(DataError, match=named):
        golden_encoder().load_original_state(state)


@pytest.mark.parametrize(
    ("width", "original_layer"), [(256, 791_808), (512, 3_156_480), (768, 7_094_016), (1024, 12_604_416)]
)
@pytest.mark.parametrize("separate_layers", [0, 1, 2])
def test_parameter_count_is_the_original_without_its_dead_norms(width, original_layer, separate_layers):
    with torch.device("meta"):
        encoder = DifnetEncoder(width=width, heads=8, ffn_width=4 * width, layers=3, separate_layers=separate_layers)
    one_norm = 2 * width
    dead = 3 * one_norm + 2 * (3 - separate_layers) * one_norm
    assert sum(p.numel() for p in encoder.parameters()) == 3 * original_layer - dead


@quick
@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 2), st.integers(1, 3), st.integers(0, 999), st.booleans())
def test_permuting_the_tokens_permutes_the_output(batch, tokens, separate_layers, repeats, seed, single):
    encoder = small_encoder(
        seed=seed, separate_layers=separate_layers, repeats=repeats, second_stream=not single, private_norms_differ=True
    )
    a, b = two_streams(batch, tokens, seed=seed)
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    moved = encoder(a[:, order], None if single else b[:, order])
    torch.testing.assert_close(moved, encoder(a, None if single else b)[:, order], atol=1e-4, rtol=1e-4)


@quick
@given(st.integers(1, 2), st.integers(1, 3), st.integers(0, 999))
def test_streams_are_interchangeable_while_their_private_norms_are_equal(separate_layers, repeats, seed):
    encoder = small_encoder(seed=seed, separate_layers=separate_layers, repeats=repeats)
    a, b = two_streams(seed=seed)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 4:] = True
    one, other = encoder(a, b, mask, mask), encoder(b, a, mask, mask)
    torch.testing.assert_close(one[~mask], other[~mask], atol=1e-5, rtol=1e-5)


def test_private_norms_tell_the_streams_apart():
    encoder = small_encoder(private_norms_differ=True)
    a, b = two_streams()
    assert not torch.allclose(encoder(a, b), encoder(b, a), atol=1e-2)


def test_without_separate_layers_it_is_a_post_norm_transformer_on_the_sum_plus_the_sum():
    encoder = small_encoder(separate_layers=0, repeats=1, private_norms_differ=True)
    a, b = two_streams()
    torch.testing.assert_close(encoder(a, b), written_out_transformer(encoder, a + b) + a + b, atol=1e-5, rtol=1e-5)


def written_out_transformer(encoder, tokens):
    """The layers as the equations write them, with an explicit softmax."""
    for layer in encoder.layers:
        attention = layer.mhatt.attention
        heads = []
        q, k, v = attention.fc_q(tokens), attention.fc_k(tokens), attention.fc_v(tokens)
        for head in range(attention.heads):
            part = slice(head * 4, head * 4 + 4)
            scores = q[..., part] @ k[..., part].mT / 4**0.5
            heads.append(scores.softmax(-1) @ v[..., part])
        inner = layer.mhatt.layer_norm(tokens + attention.fc_o(torch.cat(heads, -1)))
        attended = layer.lnorm(tokens + inner)
        hidden = F.relu(layer.pwff.fc1(attended))
        tokens = layer.pwff.layer_norm(attended + layer.pwff.fc2(hidden))
    return tokens


def test_single_stream_is_the_same_layers_with_one_skip():
    encoder = small_encoder(separate_layers=1, repeats=1, second_stream=False, private_norms_differ=True)
    plain = small_encoder(separate_layers=0, second_stream=False)
    plain.load_state_dict(encoder.state_dict())
    a, _ = two_streams()
    after_one_layer = written_out_transformer(small_prefix(encoder, 1), a)
    expected = written_out_transformer(encoder, a) + after_one_layer
    torch.testing.assert_close(encoder(a), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain(a), written_out_transformer(encoder, a) + a, atol=1e-5, rtol=1e-5)


def small_prefix(encoder, layers):
    prefix = small_encoder(layers=layers, separate_layers=0, second_stream=False)
    prefix.load_state_dict({k: v for k, v in encoder.state_dict().items() if int(k.split(".")[1]) < layers})
    return prefix


@pytest.mark.parametrize(("separate_layers", "repeats", "layers"), [(1, 2, 3), (0, 1, 1), (2, 1, 3), (3, 2, 4)])
@pytest.mark.parametrize("single", [False, True])
def test_every_parameter_receives_a_gradient(separate_layers, repeats, layers, single):
    encoder = small_encoder(
        separate_layers=separate_layers, repeats=repeats, layers=layers, second_stream=not single, train=True
    )
    a, b = two_streams()
    output = encoder(a, None if single else b)
    (output * torch.randn_like(output)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        # a key bias shifts every score of a query alike, which the softmax cancels
        assert name.endswith("fc_k.bias") or parameter.grad.abs().max() > 0, name


def test_checkpointing_changes_neither_output_nor_gradient_with_dropout_on():
    a, b = two_streams()
    results = []
    for checkpointing in (False, True):
        encoder = small_encoder(dropout=0.3, gradient_checkpointing=checkpointing, train=True)
        stream = a.clone().requires_grad_()
        torch.manual_seed(7)
        output = encoder(stream, b)
        output.square().sum().backward()
        results.append([output, stream.grad, *(p.grad for p in encoder.parameters())])
    assert all(torch.equal(plain, checkpointed) for plain, checkpointed in zip(*results, strict=True))


def test_attention_starts_xavier_uniform_with_zero_bias_and_the_output_with_the_originals_spread():
    encoder = small_encoder(width=256, heads=8, ffn_width=1024)
    for name, parameter in encoder.named_parameters():
        if ".fc_" in name and name.endswith("weight"):
            bound = (6 / (256 + 256)) ** 0.5
            assert 0.99 * bound < parameter.abs().max() <= bound
        elif ".fc_" in name:
            assert not parameter.any()
    assert encoder(*two_streams(batch=4, tokens=49, width=256)).std().item() == pytest.approx(2.4, abs=0.05)


def test_dropout_acts_in_training_only():
    a, b = two_streams()
    encoder = small_encoder(dropout=0.5)
    assert torch.equal(encoder(a, b), encoder(a, b))
    encoder.train()
    assert not torch.equal(encoder(a, b), encoder(a, b))


def test_attention_weights_are_dropped_in_training():
    attention = small_encoder(dropout=0.5, train=True).layers[0].mhatt.attention
    a, _ = two_streams()
    assert not torch.equal(attention(a, None), attention(a, None))


@quick
@given(st.integers(0, 2), st.integers(0, 999), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_masked_tokens_reach_no_unmasked_output(separate_layers, seed, dtype):
    encoder = small_encoder(seed=seed, separate_layers=separate_layers, private_norms_differ=True).to(dtype)
    a, b = (stream.to(dtype) for stream in two_streams(batch=3, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    mask_a, mask_b = torch.rand(2, 3, 6, generator=generator) < 0.4
    noisy_a = a.masked_fill(mask_a[..., None], 50.0)
    noisy_b = b.masked_fill(mask_b[..., None], -50.0)
    clean, noisy = encoder(a, b, mask_a, mask_b), encoder(noisy_a, noisy_b, mask_a, mask_b)
    assert torch.equal(clean[~mask_a], noisy[~mask_a])


def test_a_masked_token_is_as_good_as_absent():
    encoder = small_encoder(private_norms_differ=True)
    a, b = two_streams()
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[:, 4:] = True
    torch.testing.assert_close(encoder(a, b, mask, mask)[:, :4], encoder(a[:, :4], b[:, :4]), atol=1e-5, rtol=1e-5)


@quick
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=4))
def test_every_image_has_something_to_attend_to_and_only_a_fully_masked_one_sees_padding(rows):
    mask = torch.tensor(rows)
    attend = attention_mask(mask)[:, 0, 0]
    assert attend.any(-1).all()
    partly = ~mask.all(-1)
    assert torch.equal(attend[partly], ~mask[partly])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fully_masked_image_gives_finite_output_and_gradients_and_spoils_no_neighbour(dtype):
    encoder = small_encoder().to(dtype)
    a, b = (stream.to(dtype) for stream in two_streams())
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0] = True
    output = encoder(a, b, mask, mask)
    output.float().square().sum().backward()
    assert output.isfinite().all()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(output[1:], encoder(a[1:], b[1:]), atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_full_precision(dtype):
    encoder = small_encoder()
    a, b = two_streams()
    full = encoder(a, b)
    half = encoder.to(dtype)(a.to(dtype), b.to(dtype))
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), full, atol=0.15, rtol=0)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"separate_layers": 3}, "separate_layers is 3"),
        ({"separate_layers": -1}, "separate_layers is -1"),
        ({"layers": 0, "separate_layers": 0}, "separate_layers"),
        ({"heads": 5}, "heads=4 fits"),
        ({"heads": 0}, "heads is 0"),
        ({"repeats": 0}, "repeats is 0"),
        ({"ffn_width": 0}, "ffn_width is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_name(sizes, named):
    with pytest.raises(ConfigError, match=named):
        small_encoder(**sizes)


def test_streams_of_unequal_shape_are_refused_with_both_shapes():
    a, b = two_streams()
    with pytest.raises(ConfigError, match="stream a is 2×6×16, stream b is 2×5×16"):
        small_encoder()(a, b[:, :5])
    with pytest.raises(ConfigError, match="stream b is 2×6×8"):
        small_encoder()(a, b[..., :8])
    with pytest.raises(ConfigError, match="stream a has width 8, expected 16"):
        small_encoder()(a[..., :8])
    with pytest.raises(ConfigError, match="second_stream=False"):
        small_encoder(second_stream=False)(a, b)


def test_state_dict_has_official_names_only():
    official = set(load_file(WEIGHTS))
    assert set(golden_encoder().state_dict()) < official
