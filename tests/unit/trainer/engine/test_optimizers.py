"""The tables of optimizers against timm itself: who treats elements alone, takes which arguments, is refused."""

import pytest
import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn

from shards.errors import ConfigError
from trainer.engine.optimizers import (
    ELEMENT_WISE,
    WHOLE_PARAMETERS,
    OptimizerChoice,
    argument_faults,
    build_optimizer,
    check_stage,
    name_fault,
)
from trainer.engine.parameter_groups import parameter_groups

OFFERED = (*ELEMENT_WISE, *WHOLE_PARAMETERS)
SHAPES = ((33, 40), (17,), (6, 5, 4), (1,), (20, 20))
REFUSED = ("adagrad", "adahessian", "fused", "bnb", "kron")
"""How the names begin of what timm has beside."""


def after_steps(name: str, *, flat: bool, steps: int = 8) -> torch.Tensor:
    """All elements after some steps, taken by parameters or by their concatenation."""
    generator = torch.Generator().manual_seed(0)

    def draw(scale: float) -> list[torch.Tensor]:
        drawn = [scale * torch.randn(shape, generator=generator) for shape in SHAPES]
        return [torch.cat([tensor.flatten() for tensor in drawn])] if flat else drawn

    parameters = [nn.Parameter(tensor) for tensor in draw(1.0)]
    optimizer = create_optimizer_v2([{"params": parameters, "weight_decay": 0.1}], name, lr=0.03)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.03 / (1 + step)
        for parameter, gradient in zip(parameters, draw(0.3), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


@pytest.mark.parametrize("name", OFFERED)
def test_the_table_says_who_treats_every_element_by_itself(name):
    apart = (after_steps(name, flat=False) - after_steps(name, flat=True)).abs().max().item()
    assert (apart < 1e-6) == (name in ELEMENT_WISE), apart


def test_every_optimizer_of_timms_is_offered_or_refused_with_a_reason():
    names = list_optimizers()
    assert set(OFFERED) <= set(names)
    assert len(set(OFFERED)) == len(OFFERED)
    for name in names:
        fault = name_fault(name)
        assert (fault is None) == (name in OFFERED)
        assert fault is None or (name.startswith(REFUSED) and fault.startswith(name) and "; take " in fault)


@pytest.mark.parametrize("name", OFFERED)
def test_betas_and_eps_go_to_those_that_take_them(name):
    info = get_optimizer_info(name)
    faults = dict(argument_faults(OptimizerChoice(name=name, betas=(0.9,) * info.num_betas, eps=1e-6)))
    assert ("betas" in faults) == (not info.has_betas)
    assert ("eps" in faults) == (not info.has_eps)


@pytest.mark.parametrize("name", ["adan", "lion"])
def test_a_wrong_number_of_betas_is_counted(name):
    expected = get_optimizer_info(name).num_betas
    (fault,) = argument_faults(OptimizerChoice(name=name, betas=(0.9,) * (5 - expected)))
    assert fault == ("betas", f"expected {expected} numbers for {name}, got {5 - expected}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fusedadam", "fusedadam needs the package apex; take adam"),
        ("bnblion8bit", "bnblion8bit needs the package bitsandbytes; take lion"),
        ("adahessian", "needs second derivatives"),
        ("kronw", "lists of preconditioners"),
        ("lookahead_radam", "slow weights that no checkpoint holds; take radam"),
        ("adagrad", "take adadelta or rmsproptf"),
        ("Adopt", r"\(did you mean adopt\?\), got Adopt"),
        ("nadamv", r"\(did you mean nadam"),
        ("qqq", "docs/optim.md lists, such as adamw, adopt or lion, got qqq"),
    ],
)
def test_a_name_that_is_not_offered_is_answered_in_one_line(name, said):
    fault = name_fault(name)
    assert fault is not None
    assert "\n" not in fault
    with pytest.raises(ConfigError, match=said):
        raise ConfigError(fault)


@pytest.mark.parametrize("name", WHOLE_PARAMETERS)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_sees_whole_parameters_is_refused_under_zero_with_one_that_is_not(name, stage):
    check_stage(OptimizerChoice(name=name), 0)
    with pytest.raises(
        ConfigError, match=f"optim.name: {name}: .*ZeRO-{stage} .*; take (\\w+), or engine.policy"
    ) as error:
        check_stage(OptimizerChoice(name=name), stage)
    nearest = str(error.value).partition("; take ")[2].partition(",")[0]
    check_stage(OptimizerChoice(name=nearest), stage)


def test_what_counts_by_group_is_refused_under_zero_3_alone():
    for stage in (0, 1, 2):
        check_stage(OptimizerChoice(name="adan"), stage)
    with pytest.raises(ConfigError, match=r"optim\.name: adan: it counts its steps by parameter group"):
        check_stage(OptimizerChoice(name="adan"), 3)


def test_an_option_that_looks_at_whole_parameters_is_refused_under_zero():
    choice = OptimizerChoice(name="adopt", options={"caution": True})
    check_stage(choice, 0)
    with pytest.raises(ConfigError, match=r"optim.options.caution: its cautious mask .*zero0.json"):
        check_stage(choice, 1)


@pytest.mark.parametrize(
    ("name", "options", "key", "said"),
    [
        ("sgd", {"momentun": 0.5}, "options.momentun", "sgd has no such option; did you mean momentum?"),
        ("adamw", {"lr": 0.5}, "options.lr", "is optim.lr; set it there"),
        ("adopt", {"betas": [0.5, 0.5]}, "options.betas", "is optim.betas; set it there"),
        ("sgd", {"momentum": "high"}, "options", "sgd does not take these values: "),
        ("sgd", {"momentum": -1.0}, "options", "sgd does not take these values: Invalid momentum"),
        ("adamw", {"maximize": True}, "options.maximize", "adamw has no such option; it has "),
    ],
)
def test_an_option_that_is_not_taken_is_named(name, options, key, said):
    ((found, message),) = argument_faults(OptimizerChoice(name=name, options=options))
    assert found == key
    assert message.startswith(said)


def test_options_reach_the_optimizer():
    groups = [{"params": [nn.Parameter(torch.zeros(2))]}]
    assert (
        build_optimizer(OptimizerChoice(name="sgd", options={"momentum": 0.25}), groups, 0.1).defaults["momentum"]
        == 0.25
    )
    adamw = build_optimizer(OptimizerChoice(eps=0.5, options={"amsgrad": True}), groups, 0.1)
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.defaults["eps"], adamw.defaults["betas"], adamw.defaults["amsgrad"]) == (0.5, (0.9, 0.999), True)


def test_without_scales_there_are_the_decayed_and_the_others():
    module = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2))
    matrices, others = parameter_groups(module, 0.2)
    assert matrices == {"params": [module[1].weight], "weight_decay": 0.2}
    assert others == {"params": [module[0].weight, module[0].bias, module[1].bias], "weight_decay": 0.0}
    assert len(parameter_groups(nn.LayerNorm(3), 0.2)) == 1
