"""Products of bf16 matrices in float32: the same operands, the same rounding, and Muon's steps through them."""

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from trainer.engine import bf16_products
from trainer.engine.bf16_products import ThroughFloat32
from trainer.engine.optimizers import OptimizerChoice, build_optimizer

SHAPES = ((96, 128), (200, 60), (12, 9), (64,))
"""Two matrices whose products are large, one whose are small, and a vector."""


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("product", [torch.addmm, torch.baddbmm])
@pytest.mark.parametrize("into", [False, True], ids=["returned", "out"])
def test_a_large_product_is_that_of_its_operands_rounded_once(product, into):
    lead = (2,) if product is torch.baddbmm else ()
    added, left, right = draw(*lead, 70, 60), draw(*lead, 70, 80, seed=1), draw(*lead, 80, 60, seed=2)
    exact = 0.5 * added.double() + 2.0 * (left.double() @ right.double())
    given = {"out": torch.empty_like(added)} if into else {}
    with ThroughFloat32():
        found = product(added, left, right, beta=0.5, alpha=2.0, **given)
    assert found.dtype == torch.bfloat16
    assert not into or found is given["out"]
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-4)  # half a unit of bf16's last place


def test_small_products_and_those_of_other_types_are_torchs_own():
    for dtype, size in ((torch.bfloat16, 40), (torch.float32, 90)):
        operands = [draw(size, size, seed=seed, dtype=dtype) for seed in range(3)]
        with ThroughFloat32():
            found = torch.addmm(*operands, beta=0.3)
        assert torch.equal(found, torch.addmm(*operands, beta=0.3))


def parameters_of() -> list[nn.Parameter]:
    return [nn.Parameter(draw(*shape, seed=seed, dtype=torch.float32)) for seed, shape in enumerate(SHAPES)]


def take_steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int = 6) -> list[Tensor]:
    for step in range(steps):
        for number, parameter in enumerate(parameters):
            parameter.grad = draw(*parameter.shape, seed=100 * step + number, dtype=torch.float32)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def by_timm(name: str) -> list[Tensor]:
    parameters = parameters_of()
    return take_steps(create_optimizer_v2([{"params": parameters}], name, lr=0.01), parameters)


def by_engine(name: str, monkeypatch: pytest.MonkeyPatch, *, slow: bool) -> list[Tensor]:
    monkeypatch.setattr(bf16_products, "slow_on_this_processor", lambda: slow)
    parameters = parameters_of()
    return take_steps(build_optimizer(OptimizerChoice(name=name), [{"params": parameters}], 0.01), parameters)


@pytest.mark.parametrize("name", ["muon", "nmuon", "adamuon", "nadamuon"])
def test_steps_are_timms_own_where_its_products_are_fast(name, monkeypatch):
    for found, expected in zip(by_engine(name, monkeypatch, slow=False), by_timm(name), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["muon", "nmuon", "adamuon", "nadamuon"])
def test_where_they_are_slow_steps_are_timms_with_these_products(name, monkeypatch):
    found = by_engine(name, monkeypatch, slow=True)
    with ThroughFloat32():
        expected = by_timm(name)
    plain = by_timm(name)
    for start, ours, through, own in zip(parameters_of(), found, expected, plain, strict=True):
        assert torch.equal(ours, through)
        way = (own - start.detach()).norm()
        assert (ours - own).norm() <= 0.01 * way, "bf16's rounding is all that differs"
    assert torch.equal(found[2], plain[2]), "small matrices take torch's own products"
    assert torch.equal(found[3], plain[3])
