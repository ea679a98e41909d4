"""What can be found wrong without starting a run is found, and named by its key."""

import json
from pathlib import Path
from typing import Any

import pytest

from shards.atomic import write_atomically
from shards.errors import ConfigError, DataError, UserError
from shards.format.index import INDEX_NAME, SplitIndex, encode_index, index_digest
from trainer.config import RunConfig, load_config
from trainer.run_directory import RunDirectory
from trainer.training import preflight as module
from trainer.training.preflight import plan_machine, preflight


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch) -> Path:
    """A recipe that passes: two tiny splits, a policy, every tower from scratch, a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "count_gpus", lambda environment: int(environment.get("GPUS", "0")))
    for split, answered in (("train", 3), ("val", 2), ("blind", 0)):
        write_index(tmp_path / split, counts={"answered": answered})
    (tmp_path / "policy.json").write_text('{"zero_optimization": {"stage": 1}}')
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "data: {train: train, val: val}\nbatch: {visits: 8, micro_visits: 2}\n"
        "model: {freeze: []}\nengine: {policy: policy.json}\n"
    )
    return path


def write_index(directory: Path, **values: Any) -> None:
    directory.mkdir(exist_ok=True)
    empty = {"sources": [], "options": {}, "answers": {}, "groups": {}, "shards": []}
    index = SplitIndex(reader="gqa", **(empty | values))
    (directory / INDEX_NAME).write_bytes(encode_index(index))


def loaded(recipe: Path, *overrides: str) -> RunConfig:
    return load_config(recipe, overrides)


def test_a_sound_recipe_passes_and_runs_one_process_without_a_gpu(recipe: Path):
    assert preflight(loaded(recipe)).processes == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=null", r"data\.train: is not set; name a directory of shards"),
        ("data.train=nowhere", r"data\.train: nowhere: no such directory; expected a directory of finished shards"),
        ("data.val=.", r"data\.val: \.: no index\.json in it"),
        ("data.train=blind", r"data\.train: blind: no question has an answer"),
        ("engine.processes=3", r"batch\.lanes: 8 lanes cannot be shared by 3 ranks"),
        ("engine.processes=8", r"batch\.micro_visits: 2 does not divide the 1 visits"),
        ("engine.policy=none.json", r"engine\.policy: no file none\.json"),
        ("optim.name=lamb", r"optim\.name: lamb: it scales .* norm, and ZeRO-1 .* take adamw, or engine\.policy"),
        ("initialize_from=runs/none", r"initialize_from: runs/none: no such file or directory"),
        (
            "model.efficient_sam.checkpoint=sam.pt",
            r"model\.efficient_sam\.checkpoint: \S+ weights sam\.pt not found.*git hash-object",
        ),
        ("model.vision=./blip", r"model\.vision: \./blip is no directory; expected a directory"),
        ("model.answer=val", r"model\.answer: val has no config\.json"),
    ],
)
def test_what_is_missing_is_named_by_its_key(recipe: Path, override: str, message: str):
    with pytest.raises(ConfigError, match=f"^{message}"):
        preflight(loaded(recipe, override))


def test_a_second_owner_of_a_key_is_found_before_the_launcher_starts(recipe: Path):
    Path("policy.json").write_text('{"zero_optimization": {"stage": 1}, "train_batch_size": 8}')
    with pytest.raises(ConfigError, match=r"policy\.json: train_batch_size: belongs to batch\.visits"):
        preflight(loaded(recipe))


def test_what_the_run_does_not_use_need_not_exist(recipe: Path):
    unused = ["losses.itm=0", "model.match=./none", "model.second_stream=none", "data.testdev=none"]
    assert preflight(loaded(recipe, *unused, "model.efficient_sam.checkpoint=none.pt")).processes == 1


def test_precision_that_this_machine_lacks_is_found_before_the_start(recipe: Path, monkeypatch):
    monkeypatch.setattr("trainer.engine.deepspeed_config._cpu_has_fp16", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(ConfigError, match="precision: fp16 needs a GPU"):
        preflight(loaded(recipe, "precision=fp16"))


def test_other_shards_than_a_run_was_trained_on_are_found_before_the_start(recipe: Path):
    config = loaded(recipe)
    run = RunDirectory.of(config)
    last = run.checkpoints / "step1"
    last.mkdir(parents=True)
    (run.checkpoints / "last").write_text("step1")

    def trained_on(digest: str) -> None:
        (last / "state.json").write_text(json.dumps({"progress": {"identity": {"train": digest}}}))

    trained_on(index_digest(config.data.train))
    preflight(config)
    trained_on("0" * 64)
    with pytest.raises(DataError, match=r"data\.train: .*not the shards that .* was trained on"):
        preflight(config)
    preflight(config, fresh=True)


def test_weights_to_start_from_are_not_needed_to_go_on(recipe: Path):
    config = loaded(recipe, "initialize_from=gone")
    write_atomically(RunDirectory.of(config).checkpoints / "last", b"step1")
    preflight(config)
    with pytest.raises(ConfigError, match="initialize_from: gone"):
        preflight(config, fresh=True)


class TestMetric:
    """A metric that this validation data does not have is found before training, not at the first validation."""

    @pytest.fixture
    def typed(self, recipe: Path) -> Path:
        write_index(
            Path("val"),
            counts={"answered": 5, "questions": 5},
            answers={"yes": 3, "red": 2},
            types={"structural": {"verify": 3, "invented": 2}, "semantic": {"attr": 5}},
        )
        return recipe

    @pytest.mark.parametrize("metric", ["val/accuracy", "val/binary", "val/structural/verify", "val/structural/other"])
    def test_what_there_is_may_decide(self, typed: Path, metric: str):
        preflight(loaded(typed, f"early_stopping.metric={metric}"))

    @pytest.mark.parametrize("metric", ["val/open", "val/structural/query", "val/semantic/obj"])
    def test_what_is_not_there_is_refused_with_what_is(self, typed: Path, metric: str):
        there = "val/accuracy, val/binary, val/semantic/attr, val/structural/other, val/structural/verify"
        with pytest.raises(ConfigError, match=f"early_stopping.metric: {metric}: val has no such question; .*{there}"):
            preflight(loaded(typed, f"early_stopping.metric={metric}"))

    @pytest.mark.parametrize(("answer", "metric"), [("yes", "val/binary"), ("red", "val/open")])
    def test_without_types_the_answers_tell(self, recipe: Path, answer: str, metric: str):
        write_index(Path("val"), counts={"answered": 2, "questions": 2}, answers={answer: 2})
        preflight(loaded(recipe, f"early_stopping.metric={metric}"))
        with pytest.raises(ConfigError, match="has no such question"):
            preflight(loaded(recipe, f"early_stopping.metric={'val/open' if answer == 'yes' else 'val/binary'}"))


class TestMachine:
    def test_every_gpu_gets_a_rank_unless_the_recipe_says_less(self, recipe: Path):
        assert plan_machine(loaded(recipe), {"GPUS": "4"}).processes == 4
        assert plan_machine(loaded(recipe, "engine.processes=2"), {"GPUS": "4"}).processes == 2

    def test_there_are_no_more_ranks_than_gpus(self, recipe: Path):
        assert plan_machine(loaded(recipe, "engine.processes=2"), {"GPUS": "1"}) == (1, 1, ())

    def test_a_cpu_runs_as_many_ranks_as_it_is_told(self, recipe: Path):
        assert plan_machine(loaded(recipe, "engine.processes=8"), {"CUDA_VISIBLE_DEVICES": "-1"}) == (8, 0, ())

    def test_the_users_choice_of_gpus_is_kept(self, recipe: Path):
        chosen = {"GPUS": "3", "CUDA_VISIBLE_DEVICES": "5, 2,7"}
        assert plan_machine(loaded(recipe, "engine.processes=2"), chosen).gpu_numbers == ("5", "2")

    def test_gpus_named_by_uuid_are_refused_with_the_way_out(self, recipe: Path):
        with pytest.raises(UserError, match="reads numbers only"):
            plan_machine(loaded(recipe), {"GPUS": "1", "CUDA_VISIBLE_DEVICES": "GPU-8f3e"})
