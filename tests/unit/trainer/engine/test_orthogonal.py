"""Muon's iteration in float32: the same steps but for bf16's rounding, for large matrices on slow processors alone."""

import pytest
import torch
from timm.optim import create_optimizer_v2, muon
from torch import Tensor, nn

from trainer.engine import orthogonal
from trainer.engine.optimizers import OptimizerChoice, build_optimizer

SHAPES = ((96, 128), (200, 60), (40, 9, 16), (12, 9), (64,))
"""Two matrices and a filter whose products are large, one whose are small, and a vector."""
NUM_LARGE = 3
NAMES = ("muon", "nmuon", "adamuon", "nadamuon")


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameters_of() -> list[nn.Parameter]:
    return [nn.Parameter(draw(*shape, seed=seed)) for seed, shape in enumerate(SHAPES)]


def take_steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int = 6) -> list[Tensor]:
    for step in range(1, steps + 1):
        for number, parameter in enumerate(parameters):
            parameter.grad = draw(*parameter.shape, seed=100 * step + number)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def by_timm(name: str) -> list[Tensor]:
    parameters = parameters_of()
    return take_steps(create_optimizer_v2([{"params": parameters}], name, lr=0.01), parameters)


def by_engine(name: str, monkeypatch: pytest.MonkeyPatch, *, slow: bool) -> list[Tensor]:
    monkeypatch.setattr(orthogonal, "slow_on_this_processor", lambda: slow)
    parameters = parameters_of()
    return take_steps(build_optimizer(OptimizerChoice(name=name), [{"params": parameters}], 0.01), parameters)


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_timms_own_where_its_products_are_fast(name, monkeypatch):
    for found, expected in zip(by_engine(name, monkeypatch, slow=False), by_timm(name), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_where_they_are_slow_steps_differ_by_bf16s_rounding(name, monkeypatch):
    found, expected = by_engine(name, monkeypatch, slow=True), by_timm(name)
    for number, (start, ours, own) in enumerate(zip(parameters_of(), found, expected, strict=True)):
        if number < NUM_LARGE:
            assert 0 < (ours - own).norm() <= 0.05 * (own - start.detach()).norm()
        else:
            assert torch.equal(ours, own), "what is small, or no matrix, takes timm's own steps"


def test_large_matrices_are_iterated_in_float32(monkeypatch):
    seen = []

    def noted(matrix: Tensor, *_: object, dtype: torch.dtype = torch.bfloat16, **__: object) -> Tensor:
        seen.append(dtype)
        return matrix.to(dtype)

    monkeypatch.setattr(muon, "zeropower_via_newtonschulz", noted)
    by_engine("muon", monkeypatch, slow=True)
    assert seen[: len(SHAPES) - 1] == [torch.float32] * NUM_LARGE + [torch.bfloat16]


def test_a_step_that_fails_leaves_timm_as_it_was(monkeypatch):
    monkeypatch.setattr(orthogonal, "slow_on_this_processor", lambda: True)
    own = muon.zeropower_via_newtonschulz
    optimizer = build_optimizer(OptimizerChoice(name="muon"), [{"params": parameters_of()}], 0.01)

    def broken() -> float:
        assert muon.zeropower_via_newtonschulz is not own, "or nothing is left to be put back"
        raise ValueError("a closure")

    with pytest.raises(ValueError, match="a closure"):
        optimizer.step(broken)
    assert muon.zeropower_via_newtonschulz is own
