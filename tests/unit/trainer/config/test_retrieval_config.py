"""Recipes of page retrieval: what cannot stand together, and what is no CLIP or SigLIP, is one line before a start."""

import json
from pathlib import Path

import pytest

from shards.errors import ConfigError, DataError
from tests.documents import write_mpdocvqa
from tests.retrieval import shared_checkpoint
from tests.runs import write_recipe
from trainer.config import RunConfig, load_config
from trainer.config.checks import recorded_metrics
from trainer.config.resume_policy import resume_policy
from trainer.training.preflight import check_inputs

PLAIN = {
    "task": "mpdocvqa_retrieval",
    "model": {"retrieval": "openai/clip-vit-base-patch32"},
    "early_stopping": {"metric": "val/hit@1"},
}


def loaded(directory: Path, *overrides: str) -> RunConfig:
    return load_config(write_recipe(directory / "own.yaml", {"train": "train", "val": "val"}, **PLAIN), overrides)


def test_a_plain_recipe_learns_to_find_pages_and_nothing_else(tmp_path: Path):
    config = loaded(tmp_path)
    assert (config.losses.retrieve, config.losses.answer, config.losses.itm) == (1.0, 0.0, 0.0)
    assert {"val/hit@1", "val/long_hit@3", "val/retrieve_loss"} <= set(recorded_metrics(config.task, config.losses))
    assert "val/anls" not in recorded_metrics(config.task, config.losses)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.retrieval=null"], "model.retrieval: is null, and task mpdocvqa_retrieval ranks pages with it; name a"),
        (["model.retrieval=scratch"], "model.retrieval: scratch: page retrieval starts from a checkpoint"),
        (["task=gqa", "early_stopping.metric=val/accuracy"], "ranks pages, and task gqa does not; set task to"),
        (["model.vlm=some/vlm"], "model.vlm: is a whole model, and so is model.retrieval"),
        (["data.image_size=224"], "data.image_size: has no effect with model.retrieval"),
        (["data.pages_per_visit=1"], "data.pages_per_visit: 1 leaves no wrong page"),
        (["data.retrieved=val.json"], "data.retrieved: has no effect on task mpdocvqa_retrieval"),
        (["optim.layer_decay=0.9"], "optim.layer_decay: 0.9 has no effect"),
        (["pnp.reader=some/t5"], "pnp: needs a trained fusion"),
        (["losses.retrieve=0"], "losses: retrieve is 0, so nothing would be trained"),
        (["retrieval.freeze=[text, vision]"], "retrieval.freeze: holds both towers and none of them is adapted"),
        (["retrieval.lora.text.rank=2"], "retrieval.lora.text.targets: is empty"),
        (["retrieval.lora.text.targets=[q_proj]"], "retrieval.lora.text.rank: is 0 while targets are named"),
        (
            ["retrieval.lora.vision.rank=2", "retrieval.lora.vision.targets=[q_proj]"],
            "retrieval.lora.vision: vision is trained whole already; put it into retrieval.freeze",
        ),
        (["retrieval.margin=0"], "retrieval.margin: expected more than 0"),
    ],
)
def test_a_contradiction_is_named_by_its_key(tmp_path: Path, overrides: list[str], line: str):
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, *overrides)
    assert any(line in found for found in str(error.value).splitlines())


def test_what_is_read_in_evaluation_may_change_and_what_is_learnt_may_not():
    assert {resume_policy(f"data.{key}") for key in ("retrieved", "retrieved_pages")} == {"logged"}
    assert {resume_policy(f"retrieval.{key}") for key in ("loss", "margin", "freeze", "lora.text.rank")} == {"refused"}


class TestStart:
    @pytest.fixture(scope="class")
    def data(self, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
        directory = tmp_path_factory.mktemp("documents")
        out = str(write_mpdocvqa(directory / "files", num_samples=4, seed=0).build(directory / "shards"))
        return {"train": out, "val": out}

    def check(self, directory: Path, data: dict[str, str], reference: str, **sections: object) -> None:
        recipe = write_recipe(directory / "own.yaml", data, **(PLAIN | {"model": {"retrieval": reference}} | sections))
        check_inputs(load_config(recipe), device_type="cpu", past=None)

    def test_a_clip_passes(self, tmp_path: Path, data: dict[str, str]):
        self.check(tmp_path, data, shared_checkpoint("clip"))

    def test_another_kind_of_model_is_named_with_what_is_expected(self, tmp_path: Path, data: dict[str, str]):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip"}))
        with pytest.raises(ConfigError, match=r"is a blip; expected a text and a vision tower with one space: .* clip"):
            self.check(tmp_path, data, f"{tmp_path}")

    def test_a_directory_without_an_image_processor_is_named(self, tmp_path: Path, data: dict[str, str]):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
        with pytest.raises(DataError, match=r"no preprocessor_config.json, which says how images are made"):
            self.check(tmp_path, data, f"{tmp_path}")

    def test_a_ranking_that_is_not_there_is_found_before_a_model_is_loaded(self, tmp_path: Path, data: dict[str, str]):
        from tests.documents import shared_vlm

        recipe = write_recipe(
            tmp_path / "own.yaml",
            data | {"retrieved": "gone.json"},
            task="mpdocvqa",
            model={"vlm": shared_vlm()},
            early_stopping={"metric": "val/anls"},
        )
        with pytest.raises(ConfigError, match=r"data.retrieved: gone.json: cannot be read"):
            check_inputs(load_config(recipe), device_type="cpu", past=None)
