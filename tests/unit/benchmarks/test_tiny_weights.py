"""Generated weights load as their originals would, depend on the seed alone, and replace nothing that is there."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers.utils import logging as transformers_logging

from benchmarks.tiny_weights import (
    BLIP_MODELS,
    RECIPE_HOME,
    WIDTH,
    build_t5_tokenizer,
    main,
    next_commands,
    scene_texts,
    write_weights,
)
from model.efficient_sam.weights import load_efficient_sam_encoder, load_segmenter
from model.pnp.captions import load_captioner
from model.pnp.fid import load_reader
from model.towers.checkpoint_files import BLIP_ARCHITECTURES, T5_ARCHITECTURES
from model.towers.hub import load_pretrained
from shards.errors import UserError
from trainer.config import load_config
from trainer.config.schema import REPOSITORY

TEXTS = ["Is there a red square?", "yes", "large"]


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    transformers_logging.disable_progress_bar()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("weights") / "tiny"
    assert write_weights(out, TEXTS, seed=0)
    return out


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def tensors(directory: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {str(path.relative_to(directory)): load_file(path) for path in directory.rglob("*.safetensors")}


def test_the_same_seed_writes_the_same_files_and_another_seed_other_weights(weights: Path, tmp_path: Path):
    write_weights(tmp_path / "same", TEXTS, seed=0)
    write_weights(tmp_path / "other", TEXTS, seed=1)
    first, same, other = (tensors(path) for path in (weights, tmp_path / "same", tmp_path / "other"))
    assert len(first) == len(BLIP_MODELS) + 2
    for name, expected in first.items():
        assert same[name].keys() == other[name].keys() == expected.keys()
        assert all(torch.equal(same[name][key], value) for key, value in expected.items())
        assert any(not torch.equal(other[name][key], value) for key, value in expected.items())
    # safetensors writes metadata in an order of its own, which only EfficientSAM's file has
    texts = [
        {name: data for name, data in content(path).items() if name not in first}
        for path in (weights, tmp_path / "same")
    ]
    assert texts[0] == texts[1]


def test_every_model_is_loaded_by_what_loads_its_original(weights: Path):
    for name, architecture in BLIP_MODELS.items():
        model = load_pretrained(str(weights / name), BLIP_ARCHITECTURES).model
        assert type(model).__name__ == architecture
        assert model.config.text_config.encoder_hidden_size == WIDTH
    assert load_pretrained(str(weights / "t5"), T5_ARCHITECTURES).model.config.d_model == WIDTH
    assert load_captioner(str(weights / "blip_captioner")).grid == 8
    assert len(load_reader(str(weights / "t5")).answer(["is there a red square?"], [["a red square"]])) == 1


def test_the_segmenter_is_whole_and_its_encoder_is_read_alone_too(weights: Path):
    path = weights / "efficient_sam.safetensors"
    segmenter, encoder = load_segmenter(path).eval(), load_efficient_sam_encoder(path).eval()
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        embeddings = segmenter.encode(images)
        assert torch.equal(embeddings, encoder(images))
        points, labels = torch.tensor([[[0.5, 0.5]]]), torch.ones(1, 1)
        logits, iou = segmenter.masks_for(embeddings, torch.tensor([0]), points, labels)
    assert logits.isfinite().all()
    assert (logits.ndim, iou.shape) == (3, (1,))


def test_tokenizers_know_the_texts_and_spell_what_they_do_not_know(weights: Path):
    for name in ("blip_vqa", "t5"):
        tokenizer = load_pretrained(str(weights / name), (*BLIP_ARCHITECTURES, *T5_ARCHITECTURES)).tokenizer
        assert len(tokenizer("large", add_special_tokens=False)["input_ids"]) == 1
        ids = tokenizer("zebra? 7", add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids).replace(" ", "") == "zebra?7"


def test_words_of_all_scenes_are_whole_pieces_of_t5():
    texts = list(scene_texts())
    tokenizer = build_t5_tokenizer(texts)
    words = {word for text in texts for word in text.lower().replace("?", " ").replace(",", " ").split()}
    assert len(words) > 30
    assert all(len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1 for word in words)


def test_weights_that_are_there_stay_and_nothing_else_is_replaced(weights: Path, tmp_path: Path):
    before = content(weights)
    assert not write_weights(weights, TEXTS, seed=0)
    with pytest.raises(UserError, match="holds something else"):
        write_weights(weights, TEXTS, seed=1)
    assert content(weights) == before
    assert sorted(path.name for path in weights.parent.iterdir()) == [weights.name]
    (tmp_path / "empty").mkdir()
    assert write_weights(tmp_path / "empty", TEXTS, seed=0)


def test_the_commands_that_it_prints_are_ones_that_resolve(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    for out in (RECIPE_HOME, tmp_path / "elsewhere"):
        for command in next_commands(out):
            recipe, *overrides = command.split()[2:]
            config = load_config(recipe, overrides)
            assert Path(config.model.efficient_sam.checkpoint) == out / "efficient_sam.safetensors"
            assert Path(config.model.match) == out / "blip_itm"


def test_texts_that_cannot_be_read_are_one_line_and_exit_code_2(tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["tiny_weights", str(out), "--texts", str(tmp_path / "none")])
    assert main() == 2
    error = capsys.readouterr().err
    assert "cannot be read" in error
    assert error.count("\n") == 1
    assert not out.exists()
