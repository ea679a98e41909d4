"""The policy of a run: a file's, or one choice that all ranks hear, log and train under."""

import logging

import pytest

from shards.errors import ConfigError
from tests.runs import Project
from tests.thread_ranks import on_ranks
from trainer.commands.dry_run import dry_run
from trainer.config import RunConfig
from trainer.config.schema import REPOSITORY
from trainer.engine.deepspeed_config import read_policy
from trainer.engine.policy_choice import choose_policy
from trainer.training import policy
from trainer.training.policy import settle_policy
from trainer.training.preflight import check_inputs


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.write(tmp_path_factory.mktemp("policy"))


def settled(config: RunConfig, world_size: int) -> list[dict]:
    return on_ranks(world_size, lambda world: settle_policy(config, world, parameters=38_000_000, precision="fp32"))


def test_a_file_is_taken_as_it_is(project: Project):
    config = project.config("engine.policy=ds_configs/zero2.json")
    assert settled(config, 2) == [read_policy(REPOSITORY / "ds_configs" / "zero2.json")] * 2


def test_all_ranks_hear_one_choice_and_its_reason_is_logged(project: Project, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        chosen = settled(project.config("engine.policy=auto"), 2)
    assert chosen[0] == chosen[1]
    stage = chosen[0]["zero_optimization"]["stage"]
    assert f"engine.policy: auto chose ZeRO-{stage}" in caplog.text


def test_the_slowest_link_and_the_smallest_memory_decide(project: Project, monkeypatch: pytest.MonkeyPatch):
    told = []
    monkeypatch.setattr(policy, "choose_policy", lambda about: told.append(about) or choose_policy(about))
    links, memories = iter([100.0, 10.0]), iter([80, 40])
    monkeypatch.setattr(policy, "_link", lambda *_: next(links))
    monkeypatch.setattr(policy, "_memory", lambda _: next(memories) * 10**9)
    settled(project.config("engine.policy=auto"), 2)
    (about,) = told
    shared = 20 * 10**9  # both ranks are on one host
    assert (about.link_gbits, about.memory_bytes, about.ranks, about.hosts) == (10.0, shared, 2, 1)


def test_the_recipe_knows_the_link_better_than_the_system(project: Project):
    assert policy._link(project.config("engine.link_gbits=42"), None) == 42.0


def test_an_optimizer_of_whole_parameters_may_be_left_to_the_choice(project: Project):
    check_inputs(project.config("engine.policy=auto", "optim.name=muon"), device_type="cpu", past=None)
    with pytest.raises(ConfigError, match=r"optim\.name: muon"):
        check_inputs(project.config("optim.name=muon"), device_type="cpu", past=None)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("engine.processes=2",), "auto: ZeRO-0: "),
        (("optim.name=lamb", "engine.processes=2"), "auto: ZeRO-0: lamb needs whole parameters"),
        ((), "auto: ZeRO-0: one rank has nobody to share anything with"),
    ],
)
def test_a_dry_run_says_what_will_be_chosen(project: Project, overrides: tuple[str, ...], said: str):
    told = dry_run(project.config("engine.policy=auto", *overrides))
    (line,) = (line for line in told.splitlines() if line.startswith("engine.policy"))
    assert said in line


def test_a_dry_run_of_a_file_has_no_such_line(project: Project):
    assert "engine.policy" not in dry_run(project.config())
