"""Adapters: the only trained part of a frozen tower, without effect at first, and readable by PEFT itself."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import BlipForImageTextRetrieval, BlipForQuestionAnswering, T5ForConditionalGeneration

from model.build import BuiltModel
from model.config import LoraConfig
from model.towers.lora import WEIGHTS, add_lora, load_adapters, save_adapters, without_adapters
from shards.errors import ConfigError, DataError
from tests.models import random_batch, tiny_checkpoints, tiny_model, tiny_t5

ROWS = (2, 3)
BLIP_TARGETS = ("query", "crossattention.self.value")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("checkpoints")
    return tiny_checkpoints(directory) | {"t5": tiny_t5(directory / "t5")}


def adapted(
    checkpoints: dict[str, str], tower: str = "vqa", *, gradient_checkpointing: bool = False, **lora: object
) -> BuiltModel:
    """A model with frozen towers from checkpoints and adapters of rank 2."""
    targets = ("q", "v") if tower == "t5" else BLIP_TARGETS
    sections = {"answer": {"rank": 2, "targets": targets}, "match": {"rank": 2, "targets": BLIP_TARGETS}} | lora
    return tiny_model(
        vision=checkpoints["itm"],
        match=checkpoints["itm"],
        answer=checkpoints[tower],
        freeze=("vision", "match", "answer"),
        lora=sections,
        gradient_checkpointing=gradient_checkpointing,
    )


@torch.no_grad()
def changed(leaves: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    for parameter in leaves.parameters():
        parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return leaves


@pytest.mark.parametrize("tower", ["vqa", "t5"])
def test_what_is_trained_of_a_frozen_tower_is_its_adapters_and_nothing_else(
    checkpoints: dict[str, str], tower: str
) -> None:
    objective = adapted(checkpoints, tower).objective
    trained = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    assert {name.partition(".")[0] for name in trained} == {"fusion", "second_stream", "lora"}
    adapters = {name for name in trained if name.startswith("lora.")}
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in adapters)
    frozen = objective.tower("answer"), objective.tower("match"), objective.tower("vision")
    owned = {id(p) for part in frozen for p in part.parameters() if p.requires_grad}
    assert owned == {id(p) for name, p in objective.named_parameters() if name in adapters}
    assert not any("vision_model" in name for name in adapters)
    assert objective.frozen_counts()["match"] == sum(
        value.numel() for value in without_adapters(objective.tower("match").state_dict()).values()
    )


def test_adapters_change_nothing_at_first_and_something_once_trained(checkpoints: dict[str, str]) -> None:
    batch = random_batch(ROWS)
    plain = adapted(checkpoints, match={"rank": 0}).objective
    none = tiny_model(
        vision=checkpoints["itm"],
        match=checkpoints["itm"],
        answer=checkpoints["vqa"],
        freeze=("vision", "match", "answer"),
    ).objective
    assert plain(batch).loss.item() == none(batch).loss.item()
    changed(plain.adapters["answer"])
    assert plain(batch).loss.item() != none(batch).loss.item()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tower", ["vqa", "t5"])
def test_every_adapter_gets_a_gradient_and_no_frozen_weight_does(
    checkpoints: dict[str, str], tower: str, checkpointing: bool
) -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        objective = adapted(checkpoints, tower, gradient_checkpointing=checkpointing).objective
        for leaves in objective.adapters.values():
            changed(leaves)  # B is 0 at first, and A's gradient with it
        objective(random_batch(ROWS)).loss.backward()
        for _, part in objective.frozen_towers():
            assert all(parameter.grad is None for parameter in part.parameters() if not parameter.requires_grad)
        return {name: p.grad for name, p in objective.named_parameters() if name.startswith("lora.")}

    found, expected = gradients(checkpointing), gradients(False)
    for name, gradient in found.items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, expected[name])


def test_what_is_trained_starts_in_training_mode_and_what_is_frozen_stays_out_of_it(
    checkpoints: dict[str, str],
) -> None:
    lora = {"rank": 2, "targets": BLIP_TARGETS, "dropout": 0.5}
    objective, batch = adapted(checkpoints, answer=lora).objective, random_batch(ROWS)
    changed(objective.adapters["answer"])
    assert objective(batch).loss.item() != objective(batch).loss.item()
    unfrozen = tiny_model(vision=checkpoints["itm"], match=checkpoints["itm"], answer=checkpoints["vqa"]).objective
    assert all(part.training for part in unfrozen.modules())
    for name in ("vqa", "t5"):
        for _, tower in adapted(checkpoints, name).objective.frozen_towers():
            training = [path for path, module in tower.named_modules() if module.training]
            # Adapters are inside of what is frozen and follow the objective.
            assert [path for path in training if "lora_" not in path] == []


def test_dropout_of_adapters_follows_the_mode_of_the_objective(checkpoints: dict[str, str]) -> None:
    lora = {"rank": 2, "targets": BLIP_TARGETS, "dropout": 0.5}
    objective, batch = adapted(checkpoints, answer=lora).objective, random_batch(ROWS)
    changed(objective.adapters["answer"])
    objective.eval()
    assert objective(batch).loss.item() == objective(batch).loss.item()
    objective.train()
    assert objective(batch).loss.item() != objective(batch).loss.item()


@pytest.mark.parametrize(("kind", "part"), [(BlipForQuestionAnswering, "vqa"), (BlipForImageTextRetrieval, "itm")])
def test_peft_reads_what_was_saved_and_gives_the_same_states(
    checkpoints: dict[str, str], kind: type, part: str, tmp_path: Path
) -> None:
    config = LoraConfig(rank=2, alpha=5.0, targets=BLIP_TARGETS)
    # In fp64: merged weights add in another order, which a small variance under a layer norm blows up in fp32.
    ours = kind.from_pretrained(checkpoints[part]).eval().double()
    leaves = changed(add_lora(ours, config, "model.lora.answer").double())
    save_adapters(dict(leaves.state_dict()), config, checkpoints[part], tmp_path, architecture=kind.__name__)
    theirs = PeftModel.from_pretrained(kind.from_pretrained(checkpoints[part]).double(), tmp_path).eval().double()
    ids, tokens = torch.tensor([[2, 9, 11, 3]]), torch.randn(1, 17, 24, dtype=torch.float64)
    expected = ours.text_encoder(ids, encoder_hidden_states=tokens).last_hidden_state
    encoder = theirs.base_model.model.text_encoder
    torch.testing.assert_close(encoder(ids, encoder_hidden_states=tokens).last_hidden_state, expected)
    merged = theirs.merge_and_unload().text_encoder
    torch.testing.assert_close(merged(ids, encoder_hidden_states=tokens).last_hidden_state, expected)
    plain = kind.from_pretrained(checkpoints[part]).double().text_encoder
    assert not torch.allclose(plain(ids, encoder_hidden_states=tokens).last_hidden_state, expected)


def test_saved_adapters_load_again_and_foreign_ones_are_refused(checkpoints: dict[str, str], tmp_path: Path) -> None:
    config = LoraConfig(rank=2, targets=("q",))
    first, second = (T5ForConditionalGeneration.from_pretrained(checkpoints["t5"]) for _ in range(2))
    saved = changed(add_lora(first, config, "model.lora.answer"))
    save_adapters(dict(saved.state_dict()), config, checkpoints["t5"], tmp_path, architecture=type(first).__name__)
    loaded = add_lora(second, config, "model.lora.answer")
    load_adapters(loaded, tmp_path)
    for name, value in saved.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)
    wider = T5ForConditionalGeneration.from_pretrained(checkpoints["t5"])
    with pytest.raises(DataError, match=r"adapter_model\.safetensors: does not load into this recipe's adapters"):
        load_adapters(add_lora(wider, LoraConfig(rank=3, targets=("q",)), "k"), tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(DataError, match=r"adapter_model\.safetensors: does not load"):
        load_adapters(loaded, tmp_path)


def test_names_that_fit_no_layer_are_answered_with_those_that_are_there(checkpoints: dict[str, str]) -> None:
    model = BlipForQuestionAnswering.from_pretrained(checkpoints["vqa"])
    with pytest.raises(
        ConfigError, match=r"model\.lora\.answer\.targets: q_proj: .*such as decoder, dense, key, query"
    ):
        add_lora(model, LoraConfig(rank=2, targets=("q_proj",)), "model.lora.answer")
    with pytest.raises(ConfigError, match=r"model\.lora\.answer\.targets: qkv: "):
        add_lora(model, LoraConfig(rank=2, targets=("qkv",)), "model.lora.answer")
