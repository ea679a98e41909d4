"""What only a GPU can show: fp16 under ZeRO with its loss scale, and grouped gradients equal to plain ones on CUDA."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from trainer.bench.measure import measure, path_names
from trainer.bench.workload import Sizes, Workload, build_workload
from trainer.engine.distributed import World, initialize

if TYPE_CHECKING:
    from trainer.engine.engine import Update

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device on this machine"),
]

ROOT = Path(__file__).parents[2]
SMALL = Sizes(
    image_size=64,
    patch_size=8,
    vision_width=64,
    vision_layers=2,
    vision_heads=4,
    text_width=64,
    text_layers=2,
    text_heads=4,
    vocab_size=200,
    map_width=16,
    fusion_heads=4,
)
IMAGES = 2
FIRST_SCALE = 2.0**8
GROWTH_WINDOW = 2


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    before = dict(os.environ)
    world = initialize(timeout_seconds=60)
    yield world
    world.close()
    os.environ.clear()
    os.environ.update(before)


class Training:
    """A small objective in fp16 under a ZeRO stage, whose loss scale moves within a few steps."""

    def __init__(self, world: World, stage: int) -> None:
        from trainer.engine.deepspeed_config import read_policy, resolve
        from trainer.engine.engine import Engine

        workload = build_workload(SMALL, questions=(4,) * IMAGES)
        config = resolve(
            read_policy(ROOT / "ds_configs" / f"zero{stage}.json"),
            precision="fp16",
            visits=IMAGES,
            micro_visits=IMAGES,
            accumulation=1,
            world_size=1,
            max_grad_norm=1.0,
        )
        config["fp16"] |= {"initial_scale_power": 8, "loss_scale_window": GROWTH_WINDOW}
        self.engine = Engine(workload.objective, world=world, deepspeed_config=config, learning_rate=1e-3)
        workload.objective.place_frozen(self.engine.device, self.engine.dtype)
        self.workload = Workload(workload.objective, workload.batch.to(world.device))

    def step(self, *, poisoned: bool = False) -> tuple[float, "Update"]:
        """The loss of a step, and what the step did."""
        batch = self.workload.batch
        if poisoned:
            batch = batch._replace(loss_scale=batch.loss_scale * float("nan"))
        output = self.engine(batch)
        self.engine.backward(output.loss)
        return output.loss.item(), self.engine.step()

    def trained(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.engine.export_state().parameters.items()}

    def frozen(self) -> dict[str, torch.Tensor]:
        return {
            f"{part}.{name}": tensor.clone()
            for part, tower in self.workload.objective.frozen_towers()
            for name, tensor in tower.state_dict().items()
        }


@pytest.fixture(params=(1, 2, 3))
def training(world: World, request: pytest.FixtureRequest) -> Iterator[Training]:
    training = Training(world, request.param)
    yield training
    training.engine.close()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are equal bit for bit."""
    assert first.keys() == second.keys()
    return [name for name in first if torch.equal(first[name], second[name])]


def test_fp16_steps_move_every_trained_parameter_lower_the_loss_and_leave_frozen_towers_alone(training: Training):
    trained, frozen = training.trained(), training.frozen()
    steps = [training.step() for _ in range(12)]
    assert training.engine.dtype == torch.float16
    assert all(update.applied for _, update in steps)
    assert steps[-1][0] < steps[0][0]
    assert same(training.trained(), trained) == []
    assert same(training.frozen(), frozen) == list(frozen)


def test_the_loss_scale_grows_on_clean_steps_and_two_nan_steps_halve_it_and_change_nothing_else(training: Training):
    for _ in range(2 * GROWTH_WINDOW + 1):
        _, clean = training.step()
    assert clean.loss_scale > FIRST_SCALE
    before = training.trained()
    poisoned = [training.step(poisoned=True)[1] for _ in range(2)]
    assert [update.applied for update in poisoned] == [False, False]
    assert poisoned[-1].loss_scale == clean.loss_scale / 2, "hysteresis forgives the first overflow, not the second"
    assert same(training.trained(), before) == list(before)
    assert training.step()[1].applied


def test_grouped_and_plain_gradients_are_equal_on_cuda_in_fp32():
    measured = measure(
        SMALL,
        questions=(4,) * IMAGES,
        names=path_names(torch.device("cuda"), reference=True, cached=True, density=False),
        device=torch.device("cuda"),
        dtype=torch.float16,
        rounds=1,
        seconds_at_least=0.0,
    )
    assert measured.unequal == [], measured.differences
