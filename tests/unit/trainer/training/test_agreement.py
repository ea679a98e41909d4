"""What differs between hosts is named: matter, name, both values, host."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from launch.code import source_digests
from shards.errors import ConfigError, DataError
from shards.format.index import read_index
from tests.runs import Project
from tests.thread_ranks import on_ranks
from trainer.engine.distributed import World
from trainer.training import agreement
from trainer.training.agreement import check_shards, compare_facts, difference_table


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.write(tmp_path_factory.mktemp("project"))


def refusals(facts_of_rank: list[dict]) -> list[str | None]:
    """What each rank hears when the ranks have these facts."""

    def act(world: World) -> str | None:
        try:
            compare_facts(world, facts_of_rank[world.rank])
        except ConfigError as refused:
            return str(refused)
        return None

    return on_ranks(len(facts_of_rank), act)


def test_ranks_that_have_the_same_hear_nothing():
    assert refusals([{"code": {"a.py": "1"}, "packages": {"torch": "2"}}] * 3) == [None] * 3


def test_all_ranks_hear_the_same_table_of_what_one_has_otherwise():
    first = {"code": {"a.py": "1", "b.py": "2"}, "packages": {"torch": "2.14"}}
    heard = refusals([first, first, {"code": {"a.py": "1", "b.py": "3"}, "packages": {"torch": "2.13"}}])
    assert len(set(heard)) == 1
    assert "rank 2 differs from rank 0" in heard[0]
    assert "code           b.py: 3; rank 0 has 2" in heard[0]
    assert "packages       torch: 2.13; rank 0 has 2.14" in heard[0]
    assert "a.py" not in heard[0]


def test_the_table_names_each_host_once_and_what_is_there_on_one_alone():
    facts = [{"code": {"a.py": "1"}}] * 2 + [{"code": {"a.py": "1", "new.py": "9"}}] * 2
    table = difference_table(facts, ["fvn1", "fvn1", "fvn2", "fvn2"]).splitlines()
    assert table[0].startswith("fvn2 differs from fvn1, where rank 0 is; ")
    assert table[1:] == ["  fvn2         code           new.py: 9; fvn1 has nothing"]


def test_a_long_list_of_differences_is_counted():
    other = {"code": {f"{number}.py": "2" for number in range(20)}}
    table = difference_table([{"code": {f"{number}.py": "1" for number in range(20)}}, other], ["a", "b"])
    assert len(table.splitlines()) == 1 + agreement.NAMED + 1
    assert table.endswith(f"and {20 - agreement.NAMED} more")


def test_a_recipe_shows_every_value_and_the_policy_by_content(project: Project, tmp_path: Path):
    plain, other = agreement.recipe(project.config()), agreement.recipe(project.config("optim.lr=0.5"))
    assert {name for name in plain if plain[name] != other[name]} == {"optim.lr"}
    policy = tmp_path / "policy.json"
    policy.write_text('{"zero_optimization": {"stage": 1}}')
    first = agreement.recipe(project.config(f"engine.policy={policy}"))
    policy.write_text('{"zero_optimization": {"stage": 2}}')
    second = agreement.recipe(project.config(f"engine.policy={policy}"))
    assert [name for name in first if first[name] != second[name]] == [f"engine.policy: {policy}"]


def test_frozen_weights_and_vocabularies_show_to_the_bit():
    def built(change: float = 0.0, words: tuple[str, ...] = ("a",)) -> SimpleNamespace:
        tower = nn.Linear(2, 2).requires_grad_(False)
        with torch.no_grad():
            tower.weight.fill_(1.0)
            tower.bias.zero_()
            tower.weight[1, 1] += change
        tokenizer = SimpleNamespace(get_vocab=lambda: {word: number for number, word in enumerate(words)})
        objective = SimpleNamespace(frozen_towers=lambda: [("vision", tower)])
        return SimpleNamespace(objective=objective, tokenizers={"answer": tokenizer}, classes=())

    def heard(other: SimpleNamespace) -> str | None:
        def act(world: World) -> str | None:
            try:
                agreement.agree_on_weights(built() if world.rank == 0 else other, world)
            except ConfigError as refused:
                return str(refused)
            return None

        return on_ranks(2, act)[0]

    assert heard(built()) is None
    assert "frozen weights vision.weight: [2, 2] " in heard(built(change=1e-7))
    assert "vision.bias" not in heard(built(change=1e-7))
    assert "words          vocabulary of model.answer" in heard(built(words=("a", "b")))


def test_half_precision_weights_have_checksums_too():
    assert agreement._checksum(torch.ones(3, dtype=torch.bfloat16)).startswith("[3] ")
    assert agreement._checksum(torch.tensor(1.0)).startswith("[] ")


def test_a_shard_that_is_missing_or_cut_off_is_named_before_it_is_read(project: Project, tmp_path: Path):
    whole = Path(project.config().data.train)
    shards = tmp_path / "shards"
    shutil.copytree(whole, shards)
    index = read_index(shards)
    check_shards(index, "data.train", str(shards))
    name, size = index.shards[0].name, index.shards[0].bytes
    with (shards / name).open("r+b") as tar:
        tar.truncate(size - 512)
    with pytest.raises(DataError, match=rf"^data.train: \S+/{name} has {size - 512} bytes; expected {size} bytes"):
        check_shards(index, "data.train", str(shards))
    (shards / name).unlink()
    with pytest.raises(DataError, match=rf"^data.train: \S+/{name} is missing; expected {size} bytes"):
        check_shards(index, "data.train", str(shards))


def test_what_is_sent_is_small(project: Project):
    config = project.config()
    facts = {"code": source_digests(), "recipe": agreement.recipe(config), "data": agreement.data(config)}
    digests = json.dumps({matter: agreement._digest(of) for matter, of in facts.items()})
    assert len(digests) < 500, "this is gathered from every rank at every start"
