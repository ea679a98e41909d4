"""Recipes with a vision-language model: what they leave out, and what cannot stand beside it."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from model.config import VlmConfig
from model.vlm.checkpoint import check_quantize
from shards.errors import ConfigError
from tests.corpora import build_corpus
from tests.runs import write_recipe
from trainer.config import RunConfig, load_config
from trainer.config.checks import recorded_metrics
from trainer.config.resume_policy import resume_policy
from trainer.training.preflight import check_inputs

PLAIN = {"model": {"vlm": "Qwen/Qwen2.5-VL-3B-Instruct"}}


def loaded(directory: Path, *overrides: str, **sections: object) -> RunConfig:
    data = {"train": "train", "val": "val"}
    return load_config(write_recipe(directory / "vlm.yaml", data, **(PLAIN | sections)), overrides)


def refused(directory: Path, *overrides: str, **sections: object) -> str:
    with pytest.raises(ConfigError) as error:
        loaded(directory, *overrides, **sections)
    return str(error.value)


def test_only_answers_are_learnt_unless_a_recipe_asks_for_more(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    assert (config.losses.answer, config.losses.itm, config.losses.classify) == (1.0, 0.0, 0.0)
    assert "val/accuracy" in recorded_metrics(config.task, config.losses)
    assert "losses.itm: a vision-language model learns answer here" in refused(tmp_path, losses={"itm": 1.0})
    assert "losses.answer: is 0" in refused(tmp_path, losses={"answer": 0.0})


def test_the_page_with_the_answer_is_learnt_where_there_are_pages(tmp_path: Path) -> None:
    documents = {"task": "mpdocvqa"}
    assert loaded(tmp_path, **documents).losses.page == 0.0
    assert loaded(tmp_path, "losses.page=0.25", "early_stopping.metric=val/page_accuracy", **documents).losses.page
    unrecorded = refused(tmp_path, "early_stopping.metric=val/page_accuracy", **documents)
    assert "val/page_accuracy is not recorded when losses.page is 0" in unrecorded
    assert "losses.page: task gqa has no such loss" in refused(tmp_path, "losses.page=0.25")


def test_keys_of_the_fusion_are_not_looked_at(tmp_path: Path) -> None:
    assert loaded(tmp_path, "model.scratch.image_size=7", "model.second_stream=timm").model.vlm is not None


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("vlm.language.rank=0", "vlm: language.rank and vision.rank are both 0"),
        ("vlm.language.targets=[]", "vlm.language.targets: is empty"),
        ("data.image_size=224", "data.image_size: has no effect with model.vlm"),
        ("model.vlm=scratch", "model.vlm: scratch"),
        ("optim.layer_decay=0.9", "optim.layer_decay: 0.9 has no effect"),
        ("pnp.reader=some/t5", "pnp: needs a trained fusion"),
    ],
)
def test_what_has_no_effect_beside_it_is_refused(tmp_path: Path, override: str, line: str) -> None:
    found = refused(tmp_path, override)
    assert line in found
    assert "\n" not in found


def test_both_sides_have_one_dropout(tmp_path: Path) -> None:
    assert "vlm.vision.dropout" in refused(tmp_path, "vlm.vision.rank=4", "vlm.vision.dropout=0.1")
    assert loaded(tmp_path, "vlm.vision.rank=4").vlm.vision.targets == ("all-linear",)


def test_tasks_without_questions_are_refused(tmp_path: Path) -> None:
    found = refused(tmp_path, task="snli_ve", early_stopping={"metric": "val/loss", "mode": "min"})
    assert "model.vlm: writes answers to questions, and task snli_ve asks none" in found


def test_how_it_is_asked_cannot_change_when_a_run_goes_on() -> None:
    assert resume_policy("vlm.questions") == resume_policy("model.vlm") == "refused"


def test_four_bits_are_refused_without_cuda_and_without_their_package(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vlm\.quantize: nf4 computes on CUDA alone"):
        check_quantize("nf4", "cpu")
    if find_spec("bitsandbytes") is None:
        with pytest.raises(ConfigError, match="pip install -e"):
            check_quantize("nf4", "cuda")
    assert loaded(tmp_path, "vlm.quantize=nf4").vlm.quantize == "nf4"


def test_a_checkpoint_of_another_kind_is_refused_before_the_start(tmp_path: Path) -> None:
    shards, _ = build_corpus(tmp_path / "train", num_images=3)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    data = {"train": str(shards)}
    config = load_config(write_recipe(tmp_path / "vlm.yaml", data, model={"vlm": str(tmp_path / "bert")}))
    with pytest.raises(ConfigError, match="is a bert, which does not read images"):
        check_inputs(config, device_type="cpu", past=None)
    narrow = config.model_copy(update={"vlm": VlmConfig(quantize="nf4")})
    with pytest.raises(ConfigError, match="computes on CUDA alone"):
        check_inputs(narrow, device_type="cpu", past=None)
