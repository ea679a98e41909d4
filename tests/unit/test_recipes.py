"""Every recipe opens with the command that runs it, resolves, and fits the weights that its command asks for."""

import json
import re
from pathlib import Path

import pytest
from transformers.utils import logging as transformers_logging

from benchmarks.tiny_weights import RECIPE_HOME, scene_texts, write_weights
from model.towers.hub import load_pretrained
from trainer.config import RunConfig, load_config
from trainer.config.faults import leaf_keys
from trainer.config.schema import REPOSITORY
from trainer.doctor.checkpoints import checkpoint_rows, checkpoint_uses, examine_all, width_row
from trainer.doctor.efficient_sam_file import OFFICIAL, efficient_sam_row

RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
OF_OTHER_SIZE = ("gqa_blip_tiny", "gqa_vlm_lora")
"""A demonstration, and a model that counts tokens and learns answers in its own way."""
FULL_SIZE = [path for path in RECIPES if path.name.startswith("gqa_") and path.stem not in OF_OTHER_SIZE]
TINY = REPOSITORY / "recipes" / "gqa_blip_tiny.yaml"


def named(paths: list[Path]):
    return pytest.mark.parametrize("recipe", paths, ids=lambda path: path.stem)


def header(recipe: Path) -> list[str]:
    """The comment that a recipe opens with, line by line."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").strip() for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")]]


@named(RECIPES)
def test_the_first_line_is_a_command_that_runs_this_very_file(recipe: Path):
    command = header(recipe)[0].split()
    if command[0] == "make":
        rule = re.search(rf"^{command[1]}:.*\n\t.*python -m (\S+)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        script = REPOSITORY / f"{rule[1].replace('.', '/')}.py"
        assert f"recipes/{recipe.name}" in script.read_text()
    elif command[:2] == ["python", "-m"]:
        script = (REPOSITORY / f"{command[2].replace('.', '/')}.py").read_text()
        if recipe.stem.startswith("scenes_"):
            assert 'f"recipes/scenes_{' in script
            assert f'"{recipe.stem.removeprefix("scenes_")}"' in script
        else:
            assert f"recipes/{recipe.name}" in script
    else:
        assert command[:2] == ["duoflow", "train"]
        assert (REPOSITORY / command[2]).samefile(recipe)


@named(RECIPES)
def test_a_recipe_resolves_to_a_run_of_its_own_name(recipe: Path):
    assert load_config(recipe).run.name == recipe.stem
    assert len(header(recipe)) > 2, "what the run is, and what it needs"


@named(RECIPES)
def test_commands_in_the_comment_name_files_and_keys_that_exist(recipe: Path):
    text = "\n".join(header(recipe))
    assert all((REPOSITORY / path).is_file() for path in re.findall(r"recipes/\w+\.yaml", text))
    modules = [module.replace(".", "/") for module in re.findall(r"python -m (\S+)", text)]
    assert all((REPOSITORY / f"{module}.py").is_file() for module in modules)
    keys = re.findall(r"\b((?:data|model|run|limits|engine)\.[\w.]+)=", text)
    assert set(keys) <= set(leaf_keys(RunConfig))


@named(FULL_SIZE)
def test_recipes_of_full_size_differ_in_the_model_and_not_in_what_it_is_measured_on(recipe: Path):
    base, own = load_config(REPOSITORY / "recipes" / "gqa_blip_base.yaml"), load_config(recipe)
    for section in ("data", "losses", "early_stopping", "limits", "validate_every"):
        assert getattr(own, section) == getattr(base, section)
    assert own.batch.visits == base.batch.visits
    assert Path(own.model.efficient_sam.checkpoint).name == OFFICIAL[own.model.efficient_sam.variant].removesuffix(
        ".zip"
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with generated weights where the tiny recipe looks for them."""
    transformers_logging.disable_progress_bar()
    directory = tmp_path_factory.mktemp("home")
    write_weights(directory / RECIPE_HOME, list(scene_texts()), seed=0)
    return directory


class TestTiny:
    @pytest.mark.parametrize(
        "overrides",
        [
            [],
            ["model.second_stream=efficient_sam_masks"],
            ["model.answer=./weights/tiny/t5", "model.lora.answer.rank=4", "model.lora.answer.targets=[q,v]"],
        ],
        ids=["as it is", "masks", "t5"],
    )
    def test_the_generated_weights_are_all_that_the_recipe_names(self, home: Path, monkeypatch, overrides: list[str]):
        monkeypatch.chdir(home)
        config = load_config(TINY, overrides)
        uses = checkpoint_uses(config)
        checkpoints = examine_all(uses)
        rows = [*checkpoint_rows(uses, checkpoints), width_row(config.model, uses, checkpoints)]
        rows.append(efficient_sam_row(config.model))
        assert [row for row in rows if row.fault is not None or row.steps] == []
        assert {use.key for use in uses} == {
            "model.vision",
            "model.match",
            "model.answer",
            "pnp.captioner",
            "pnp.reader",
        }

    def test_its_architectures_are_those_of_the_base_recipe(self, home: Path, monkeypatch):
        monkeypatch.chdir(home)
        base, tiny = load_config(REPOSITORY / "recipes" / "gqa_blip_base.yaml"), load_config(TINY)
        expected = {use.key: use.architectures for use in checkpoint_uses(base)}
        for use in checkpoint_uses(tiny):
            config = json.loads((Path(use.reference) / "config.json").read_text())
            assert config["architectures"][0] in expected[use.key]
        changed = {"heads"}
        assert tiny.model.fusion.model_dump(exclude=changed) == base.model.fusion.model_dump(exclude=changed)


def test_a_t5_whose_tokenizer_is_a_sentencepiece_file_alone_is_read(tmp_path: Path):
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece of setup.py is not installed here")
    from transformers import T5Config, T5ForConditionalGeneration

    texts = list(scene_texts())
    (tmp_path / "texts").write_text("\n".join(texts))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "texts"),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=90,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        minloglevel=2,
    )
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    directory = tmp_path / "t5"
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(vocab_size=len(own) + 100, **sizes)).save_pretrained(directory)
    (tmp_path / "spiece.model").rename(directory / "spiece.model")
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 100}')
    tokenizer = load_pretrained(str(directory), ("T5ForConditionalGeneration",)).tokenizer
    assert tokenizer(texts, add_special_tokens=False)["input_ids"] == own.encode(texts)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
