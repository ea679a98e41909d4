"""The memory plan: what fits is taken, what does not is told with the number to set."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from shards.errors import ConfigError, UserError
from tests.runs import Project
from trainer.build import open_split
from trainer.engine import device_memory
from trainer.engine.distributed import World
from trainer.training import memory_plan
from trainer.training.memory_plan import MemoryPlan, make_plan, no_plan, remedy, settle_micro_visits
from trainer.training.out_of_memory import OutOfMemoryError, explained, is_out_of_memory, start_explained

POLICY = {"zero_optimization": {"stage": 1}}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.write(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def plan(project: Project) -> MemoryPlan:
    return plan_of(project)


def plan_of(project: Project, *overrides: str) -> MemoryPlan:
    config, built = project.config(*overrides), project.model(*overrides)
    index = open_split(config, "train").index
    given = {"policy": POLICY, "precision": "fp32", "world_size": 1, "device": torch.device("cpu"), "ranks_here": 1}
    return make_plan(config, built, index, **given)


def test_it_grows_with_visits_and_knows_every_part_of_the_model(plan: MemoryPlan) -> None:
    assert plan.per_visit > 0
    assert plan.total(8) == plan.total(1) + 7 * plan.per_visit
    assert {"vision", "second_stream", "fusion", "match", "answer"} <= plan.kept_per_visit.keys()
    assert sum(plan.kept_per_visit.values()) <= plan.per_visit * 1.05


def test_the_largest_that_fits_divides_the_visits_of_a_rank(plan: MemoryPlan) -> None:
    assert list(plan.sizes) == [1, 2, 4, 8]
    assert plan.largest == 8
    assert replace(plan, capacity=plan.total(8) - 1).largest == 4
    assert replace(plan, capacity=plan.total(1) - 1).largest is None


def test_after_a_failure_the_number_is_a_smaller_one_even_if_the_plan_was_wrong(plan: MemoryPlan) -> None:
    assert plan.below(8) == 4
    assert replace(plan, capacity=plan.total(2)).below(8) == 2
    assert replace(plan, capacity=0).below(8) == 4
    assert plan.below(1) is None


def test_the_number_to_set_is_named_by_its_key(project: Project, plan: MemoryPlan) -> None:
    assert remedy(project.config("batch.micro_visits=8"), plan) == "set batch.micro_visits=4"
    assert remedy(project.config("batch.micro_visits=8"), None) == "set batch.micro_visits=4"
    tokens = project.config("batch.micro_visits=null", "batch.micro_tokens=300")
    assert remedy(tokens, plan) == "set batch.micro_tokens=150"
    assert "model.gradient_checkpointing=true" in remedy(tokens, replace(plan, capacity=plan.total(1) - 1))
    one = project.config("batch.micro_visits=1")
    assert "model.gradient_checkpointing=true" in remedy(one, plan)
    assert remedy(project.config("batch.micro_visits=1", "model.gradient_checkpointing=true"), plan).startswith("lower")


def settled(project: Project, capacity: int, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    monkeypatch.setattr(memory_plan, "capacity", lambda *_, **__: capacity)
    config = project.config("batch.micro_visits=auto")
    index = open_split(config, "train").index
    built = project.model()
    return settle_micro_visits(config, built, index, World(), policy=POLICY, precision="fp32").batch.micro_visits


def test_auto_becomes_the_largest_that_fits(
    project: Project, plan: MemoryPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settled(project, plan.total(8), monkeypatch) == 8
    assert settled(project, plan.total(4), monkeypatch) == 4


def test_a_device_too_small_for_one_visit_is_refused_in_one_line(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ConfigError, match=r"^batch\.micro_visits: auto: one visit does not fit: .* GiB of 0\.00: "
    ) as it:
        settled(project, 1000, monkeypatch)
    assert "\n" not in str(it.value)


def test_a_number_is_left_alone(project: Project) -> None:
    config = project.config()
    assert settle_micro_visits(config, None, None, World(), policy={}, precision="fp32") is config


def test_a_model_without_a_plan_says_why() -> None:
    assert no_plan(SimpleNamespace(objective=None)) is not None


def run_of(project: Project, *overrides: str) -> SimpleNamespace:
    config = project.config(*overrides)
    return SimpleNamespace(
        config=config,
        built=project.model(*overrides),
        world=World(),
        engine=SimpleNamespace(zero_stage=1, dtype=torch.float32),
        train_batches=SimpleNamespace(split=open_split(config, "train")),
    )


def test_an_allocation_that_fails_is_told_with_the_plan_and_the_number(project: Project) -> None:
    with pytest.raises(OutOfMemoryError) as it:
        explained(run_of(project, "batch.micro_visits=8"), lambda: torch.empty(1 << 50))
    line = str(it.value)
    assert isinstance(it.value, UserError)
    assert "\n" not in line
    assert line.startswith("out of memory with batch.micro_visits=8 (")
    assert "activations of 8 visits" in line
    assert "set batch.micro_visits=4" in line


def test_gpus_and_hosts_fail_alike_and_other_errors_are_left_alone(project: Project) -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        explained(run_of(project), lambda: fail(RuntimeError("shape mismatch")))
    assert explained(run_of(project), lambda: 3) == 3


def fail(error: Exception) -> None:
    raise error


def test_a_plan_that_cannot_be_told_does_not_hide_the_number(project: Project) -> None:
    run = run_of(project, "batch.micro_visits=4")
    run.engine.zero_stage = 3
    with pytest.raises(
        OutOfMemoryError, match=r"out of memory with batch\.micro_visits=4 .*; set batch\.micro_visits=2"
    ):
        explained(run, lambda: fail(torch.OutOfMemoryError("CUDA out of memory")))


def test_by_tokens_as_many_visits_are_planned_as_the_limit_holds_of_the_longest(project: Project) -> None:
    limit = 3 * project.config().data.questions_per_visit * project.config().data.max_question_tokens
    run = run_of(project, "batch.micro_visits=null", f"batch.micro_tokens={limit + 1}")
    with pytest.raises(OutOfMemoryError, match=rf"batch\.micro_tokens={limit + 1} .*activations of 3 visits"):
        explained(run, lambda: fail(MemoryError()))


def test_a_model_that_does_not_even_start_says_what_to_change() -> None:
    with pytest.raises(OutOfMemoryError, match=r"^out of memory before the first step \(.*set precision=bf16"):
        start_explained(lambda: torch.empty(1 << 50))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        start_explained(lambda: fail(RuntimeError("shape mismatch")))
    assert start_explained(lambda: 3) == 3


def test_of_a_gpu_only_what_others_have_left_is_planned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    gib, taken = 2**30, {"others": 0, "own": 3}
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: taken["own"] * gib)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: ((80 - taken["others"] - taken["own"]) * gib, 80 * gib))
    device = torch.device("cuda", 0)
    assert device_memory.capacity(device, ranks_here=1) == pytest.approx(0.94 * 80 * gib)
    taken["others"] = 50
    assert device_memory.capacity(device, ranks_here=1) == pytest.approx(29 * gib)
