"""Towers from checkpoints: what save_pretrained wrote is read back whole, shared where named twice, refused by name."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BlipForImageTextRetrieval, BlipForQuestionAnswering, BlipTextConfig

from model.config import LossConfig
from model.efficient_sam.encoder import EfficientSamEncoder, EfficientSamEncoderConfig
from model.efficient_sam.weights import save_efficient_sam_encoder
from model.source import build_efficient_sam, scratch_blip_config
from model.towers.checkpoint_files import BLIP_ARCHITECTURES
from model.towers.hub import load_pretrained
from model.towers.tokenizer import build_tokenizer
from model.untrained import POSITION_STD
from shards.errors import ConfigError, DataError
from tests.models import WORDS, model_config, random_batch, tiny_blip, tiny_model


def save(kind: type, directory: Path) -> Path:
    tiny_blip(kind).save_pretrained(directory)
    build_tokenizer(WORDS, vocab_size=60).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    base = tmp_path_factory.mktemp("checkpoints")
    sam = EfficientSamEncoderConfig(image_size=32, patch_size=8, width=12, depth=1, heads=2, neck_width=10)
    save_efficient_sam_encoder(EfficientSamEncoder(sam), base / "sam.safetensors")
    return {
        "vqa": str(save(BlipForQuestionAnswering, base / "vqa")),
        "itm": str(save(BlipForImageTextRetrieval, base / "itm")),
        "sam": str(base / "sam.safetensors"),
    }


def test_a_checkpoint_loads_bit_for_bit_and_trains_the_fusion_alone(checkpoints: dict[str, str]) -> None:
    built = tiny_model(
        vision=checkpoints["vqa"],
        match=checkpoints["itm"],
        answer=checkpoints["vqa"],
        efficient_sam={"checkpoint": checkpoints["sam"], "variant": "custom"},
        freeze=("vision", "second_stream", "match", "answer"),
    )
    plain = tiny_blip(BlipForQuestionAnswering)
    for name, value in plain.vision_model.state_dict().items():
        assert torch.equal(built.objective.tower("vision").state_dict()[name], value)
    for name, value in plain.text_decoder.state_dict().items():
        assert torch.equal(built.objective.tower("answer").text_decoder.state_dict()[name], value)
    head = tiny_blip(BlipForImageTextRetrieval).itm_head.weight
    assert torch.equal(built.objective.tower("match").itm_head.weight, head)
    assert {name.split(".")[0] for name, _ in built.objective.named_parameters()} == {"fusion"}
    built.objective(random_batch((2, 1))).loss.backward()
    assert built.answer_codec.start_id == 5
    assert built.image_size == 32


def test_only_what_a_loss_uses_is_loaded(checkpoints: dict[str, str]) -> None:
    built = tiny_model(
        vision=checkpoints["vqa"], answer=checkpoints["vqa"], match="nowhere/at-all", losses=LossConfig(itm=0.0)
    )
    assert built.match_codec is None


def test_a_checkpoint_without_the_part_is_refused_by_key(checkpoints: dict[str, str]) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.match: .* is a BlipForQuestionAnswering and has no itm_head; expected a Blip"
    ):
        tiny_model(match=checkpoints["vqa"])
    with pytest.raises(ConfigError, match=r"model\.answer: .* has no text_decoder"):
        tiny_model(answer=checkpoints["itm"])


def test_missing_and_foreign_checkpoints_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no checkpoint in .*expected config\.json, model\.safetensors"):
        load_pretrained(str(tmp_path), BLIP_ARCHITECTURES)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"hf download Salesforce/blip-vqa-base --revision abc"):
        load_pretrained("Salesforce/blip-vqa-base@abc", BLIP_ARCHITECTURES)
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a BertModel; expected BlipForQuestionAnswering or "):
        load_pretrained(str(tmp_path), BLIP_ARCHITECTURES)


def test_a_checkpoint_without_the_files_of_its_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_blip().save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"no checkpoint in .*tokenizer knows \d+ tokens and the model 60\)"):
        load_pretrained(str(tmp_path), BLIP_ARCHITECTURES)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    model = tiny_blip(BlipForImageTextRetrieval)
    model.config.architectures = ["BlipForQuestionAnswering"]
    state = {k: v for k, v in model.state_dict().items() if k.startswith(("vision_model", "text_encoder"))}
    model.save_pretrained(tmp_path, state_dict=state)
    config = (tmp_path / "config.json").read_text().replace("BlipForImageTextRetrieval", "BlipForQuestionAnswering")
    (tmp_path / "config.json").write_text(config)
    build_tokenizer(WORDS, vocab_size=60).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"weights are missing: text_decoder"):
        load_pretrained(str(tmp_path), BLIP_ARCHITECTURES)


def test_scratch_models_set_every_special_id_and_start_from_weights_that_can_learn() -> None:
    tokenizer = build_tokenizer(WORDS, vocab_size=60)
    text: BlipTextConfig = scratch_blip_config(model_config().scratch, tokenizer).text_config
    ids = [text.bos_token_id, text.eos_token_id, text.sep_token_id, text.pad_token_id]
    assert all(identifier < len(tokenizer) for identifier in ids)
    assert ids[0] == tokenizer.convert_tokens_to_ids("[DEC]")
    vision = tiny_model().objective.tower("vision")
    attention = vision.encoder.layers[0].self_attn
    assert attention.qkv.weight.std().item() == pytest.approx(attention.embed_dim**-0.5, rel=0.2)
    assert vision.embeddings.position_embedding.std().item() == pytest.approx(POSITION_STD, rel=0.2)


def test_too_many_tokens_for_the_positions_of_a_checkpoint_are_refused(checkpoints: dict[str, str]) -> None:
    from model.build import build_model

    with pytest.raises(
        ConfigError, match=r"max_question_tokens \+ data\.max_answer_tokens: 52, but .* has 32 positions"
    ):
        build_model(
            model_config(vision=checkpoints["vqa"], answer=checkpoints["vqa"]),
            LossConfig(itm=0.0),
            seed=0,
            max_question_tokens=40,
            max_answer_tokens=12,
            scratch_tokenizer=lambda: build_tokenizer(WORDS, vocab_size=60),
        )


def test_efficient_sam_as_first_stream_gives_the_cells_of_its_map(tmp_path: Path) -> None:
    encoder = build_efficient_sam(model_config().efficient_sam, checkpointing=False)
    path = tmp_path / "encoder.safetensors"
    save_efficient_sam_encoder(encoder, path)
    objective = tiny_model(
        vision="efficient_sam",
        second_stream="none",
        efficient_sam={"variant": "custom", "checkpoint": str(path)},
        fusion={"heads": 2, "layers": 2},
        freeze=("vision",),
    ).objective
    pixels = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    tokens, features = objective.image_tokens(pixels), encoder(pixels.float() / 255)
    assert (objective.sight.prefix, objective.sight.width) == (0, features.shape[1])
    torch.testing.assert_close(tokens.unflatten(1, features.shape[2:]).permute(0, 3, 1, 2), features)
    assert objective.fuse(pixels).shape[1] == features.shape[2] * features.shape[3]
    assert not [name for name, _ in objective.named_parameters() if name.startswith("vision")]
