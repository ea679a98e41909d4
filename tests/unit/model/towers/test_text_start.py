"""What BLIP's encoders read first: [ENC] where they were trained with it, and what an export says of itself."""

import json
from pathlib import Path

import pytest
from transformers import BertTokenizer

from model.build import BuiltModel
from model.towers.tokenizer import SPECIAL_TOKENS, build_tokenizer
from shards.errors import ConfigError
from tests.models import WORDS, tiny_blip, tiny_checkpoints, tiny_model
from tests.runs import Project, weights
from tests.t5 import change_config
from trainer.config import load_config, load_run_config
from trainer.config.resume_policy import check_resumable, config_diff
from trainer.export.merge import copy_export
from trainer.export.write import ITM, VQA, export_model, exported_model_config
from trainer.run_directory import RunDirectory

CLS, DEC, ENC = (SPECIAL_TOKENS.index(token) for token in ("[CLS]", "[DEC]", "[ENC]"))
VOCABULARY = 60
FROZEN = ("vision", "second_stream", "match", "answer")


@pytest.fixture
def checkpoints(tmp_path: Path) -> dict[str, str]:
    return tiny_checkpoints(tmp_path / "hub")


def published(directory: Path, *, start_id: int) -> str:
    """A checkpoint whose tokenizer is BERT's own, without [DEC] and [ENC], as the published ones have it."""
    known = build_tokenizer(WORDS, vocab_size=VOCABULARY).get_vocab()
    plain = sorted(known.keys() - {"[DEC]", "[ENC]"}, key=known.__getitem__)
    BertTokenizer(vocab={word: number for number, word in enumerate(plain[: VOCABULARY - 2])}).save_pretrained(
        directory
    )
    tiny_blip().save_pretrained(directory)
    text = json.loads((directory / "config.json").read_text())["text_config"]
    change_config(directory, text_config=text | {"bos_token_id": start_id})
    return str(directory)


def first_ids(built: BuiltModel) -> set[int]:
    """The first token of everything that the two towers' encoders read."""
    asked = [codec.questions(["is there a red square"])[0][0] for codec in (built.answer_codec, built.match_codec)]
    paired = built.match_codec.pairs(["is there a red square"], ["yes"])[0][0]
    return {ids[0] for ids in (*asked, paired)}


@pytest.mark.parametrize(("text_start", "hub", "scratch"), [(None, ENC, CLS), ("cls", CLS, CLS), ("enc", ENC, ENC)])
def test_checkpoints_of_a_hub_read_enc_and_scratch_cls_unless_the_recipe_says_it(
    checkpoints: dict[str, str], text_start: str | None, hub: int, scratch: int
) -> None:
    towers = {"vision": checkpoints["itm"], "match": checkpoints["itm"], "answer": checkpoints["vqa"]}
    built = tiny_model(**towers, freeze=("vision", "match", "answer"), text_start=text_start)
    assert first_ids(built) == {hub}
    assert built.answer_codec.start_id == DEC
    assert first_ids(tiny_model(text_start=text_start)) == {scratch}


def test_a_published_tokenizer_knows_no_enc_and_its_id_follows_that_of_dec(tmp_path: Path) -> None:
    built = tiny_model(answer=published(tmp_path / "vqa", start_id=VOCABULARY - 2))
    assert "[ENC]" not in built.answer_codec.tokenizer.get_vocab()
    assert (built.answer_codec.start_id, built.answer_codec.first_id) == (VOCABULARY - 2, VOCABULARY - 1)


def test_embeddings_without_a_row_for_enc_are_refused_with_the_way_out(tmp_path: Path) -> None:
    answer = published(tmp_path / "vqa", start_id=VOCABULARY - 1)
    with pytest.raises(ConfigError, match=r"^model\.text_start: enc: .*vqa has embeddings for 60 tokens.*=cls$"):
        tiny_model(answer=answer)
    assert tiny_model(answer=answer, text_start="cls").answer_codec.first_id == CLS


def test_a_checkpoint_that_says_something_else_of_itself_is_refused(checkpoints: dict[str, str]) -> None:
    change_config(Path(checkpoints["vqa"]), text_start="bos")
    with pytest.raises(ConfigError, match=r"vqa: config\.json: text_start: 'bos', expected cls or enc; set model"):
        tiny_model(answer=checkpoints["vqa"])


def test_a_guided_stream_needs_questions_that_begin_alike(checkpoints: dict[str, str]) -> None:
    change_config(Path(checkpoints["vqa"]), text_start="cls")
    towers = {"vision": checkpoints["itm"], "match": checkpoints["itm"], "answer": checkpoints["vqa"]}
    masks = {"efficient_sam": {"variant": "custom", "checkpoint": checkpoints["sam"]}, "guidance": {"block": 0}}
    guided = {**towers, **masks, "second_stream": "efficient_sam_masks", "freeze": FROZEN}
    with pytest.raises(ConfigError, match=r"itm with enc and .*vqa with cls was trained; set model\.text_start"):
        tiny_model(**guided)
    assert first_ids(tiny_model(**guided, text_start="enc")) == {ENC}


@pytest.mark.parametrize(("text_start", "recorded"), [("null", "cls"), ("enc", "enc")])
def test_an_export_says_how_it_was_trained_and_is_read_so(tmp_path: Path, text_start: str, recorded: str) -> None:
    project = Project.write(tmp_path)
    key = f"model.text_start={text_start}"
    config, built = project.config(key), project.model(key)
    export_model(config, built, weights(built.objective), tmp_path / "export", step=1, metrics={})
    for name in (VQA, ITM):
        assert json.loads((tmp_path / "export" / name / "config.json").read_text())["text_start"] == recorded
    elsewhere = tiny_model(
        match=str(tmp_path / "export" / ITM), answer=str(tmp_path / "export" / VQA), freeze=("match", "answer")
    )
    assert first_ids(elsewhere) == {{"cls": CLS, "enc": ENC}[recorded]}
    again = exported_model_config(config.model, tmp_path / "export")
    assert again.text_start == config.model.text_start


@pytest.mark.parametrize(("text_start", "recorded"), [("null", "enc"), ("cls", "cls")])
def test_so_does_a_checkpoint_with_its_adapters_merged(
    checkpoints: dict[str, str], tmp_path: Path, text_start: str, recorded: str
) -> None:
    run = RunDirectory(tmp_path / "lora")
    lora = ("model.lora.answer.rank=2", "model.lora.answer.targets=[query]", "losses.itm=0")
    towers = (
        f"model.vision={checkpoints['itm']}",
        f"model.answer={checkpoints['vqa']}",
        "model.freeze=[vision, answer]",
    )
    project = Project.write(tmp_path)
    keys = (*lora, *towers, "model.second_stream=none", f"model.text_start={text_start}")
    config, built = project.config(f"run.directory={tmp_path}", "run.name=lora", *keys), project.model(*keys)
    run.create()
    run.write_config(config)
    export_model(config, built, weights(built.objective), run.export, step=1, metrics={})
    copy_export(run.path, tmp_path / "merged", merge=True)
    assert json.loads((tmp_path / "merged" / VQA / "config.json").read_text())["text_start"] == recorded


class TestResume:
    """A run reads the same first token to its end."""

    def write(self, path: Path, model: str) -> Path:
        path.write_text(f"batch: {{visits: 4, micro_visits: 2}}\nmodel: {{{model}}}\n")
        return path

    def test_a_run_from_before_there_was_the_key_has_read_cls(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "config.yaml", "match: some/blip, answer: some/vqa, freeze: [match, answer]")
        assert load_run_config(path).model.text_start == "cls"
        assert load_run_config(path, ["model.text_start=enc"]).model.text_start == "enc"
        assert load_config(path).model.text_start is None
        assert RunDirectory(tmp_path).read_config() == load_run_config(path)
        with pytest.raises(ConfigError, match=r"model\.text_start: was cls, is null; this cannot change"):
            check_resumable(load_run_config(path), load_config(path), "runs/tiny")
        assert not check_resumable(load_run_config(path), load_config(path, ["model.text_start=cls"]), "runs/tiny")

    def test_one_from_scratch_goes_on_as_it_is(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "config.yaml", "freeze: []")
        assert config_diff(load_run_config(path), load_config(path)) == []
        assert config_diff(load_config(path), load_config(path, ["model.text_start=enc"])) != []
