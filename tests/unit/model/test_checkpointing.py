"""Which layers are computed again, and that they are, and no others."""

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from model.checkpointing import recompute_layers_in, run_layer, which_again


class Counting(nn.Module):
    """Counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.passes = nn.Linear(4, 4), 0

    def forward(self, tokens: Tensor) -> Tensor:
        self.passes += 1
        return self.linear(tokens).relu()


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 0), (False, 0), (1e-6, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.99, 4), (1.0, 4), (True, 4)],
)
def test_the_first_layers_are_computed_again_and_no_others(share: float, expected: int) -> None:
    layers = nn.ModuleList(Counting() for _ in range(4))
    assert [again for _, again in which_again(layers, share)] == [True] * expected + [False] * (4 - expected)
    tokens = torch.randn(2, 4)
    for layer, again in which_again(layers, share):
        tokens = run_layer(layer, again, tokens)
    tokens.sum().backward()
    assert [layer.passes for layer in layers] == [2] * expected + [1] * (4 - expected)


def test_a_share_that_floats_round_up_is_no_layer_more() -> None:
    assert 0.28 * 25 > 7
    assert sum(again for _, again in which_again([Counting() for _ in range(25)], 0.28)) == 7


def test_nothing_is_computed_again_without_a_gradient() -> None:
    layer = Counting()
    with torch.no_grad():
        assert not run_layer(layer, True, torch.randn(2, 4)).requires_grad
    assert layer.passes == 1


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.5, 2), (0.6, 3), (1.0, 4)])
def test_a_model_of_transformers_computes_that_many_of_its_layers_again(share: float, expected: int) -> None:
    sizes = {"vocab_size": 10, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    model = CLIPTextModel(CLIPTextConfig(**sizes, num_hidden_layers=4)).train()
    passes = [0] * 4
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    for place, layer in enumerate(layers):
        layer.layer_norm1.register_forward_hook(lambda *_, place=place: passes.__setitem__(place, passes[place] + 1))
    recompute_layers_in(model, share)
    model(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state.sum().backward()
    assert passes == [2] * expected + [1] * (4 - expected)
