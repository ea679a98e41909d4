"""What cannot be trained is refused in one line, before a model is loaded where its files tell."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, ones, zeros
from transformers import AutoModelForImageTextToText

from model.config import LossConfig, ModelConfig, VlmConfig
from model.vlm.build import BuiltVlm, build_vlm
from model.vlm.checkpoint import check_checkpoint
from model.vlm.collation import OwnSizeEyes
from model.vlm.trial import try_sharing
from shards.errors import ConfigError, DataError
from shards.read.collation import SeenVisit
from shards.tasks import TASKS
from shards.tasks.seam import Row, Target
from tests.vlm import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("vlm"))


def build(checkpoint: Path | str, vlm: VlmConfig | None = None) -> BuiltVlm:
    limits = {"seed": 0, "max_question_tokens": 32, "max_answer_tokens": 8}
    model, losses = ModelConfig(vlm=str(checkpoint)), LossConfig(itm=0.0)
    return build_vlm(model, vlm or VlmConfig(), losses, task=TASKS["gqa"], **limits)


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", refuse)


def line_of(error: pytest.ExceptionInfo) -> str:
    said = str(error.value)
    assert "\n" not in said
    return said


@pytest.mark.usefixtures("never_loaded")
def test_a_model_that_does_not_write_about_images_is_refused_by_its_config(tmp_path: Path) -> None:
    reference = tmp_path / "bert"
    reference.mkdir()
    (reference / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(ConfigError) as error:
        build(reference)
    assert line_of(error).startswith(f"model.vlm={reference}: is a bert, which does not read images")


@pytest.mark.usefixtures("never_loaded")
def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        build(tmp_path / "gone")
    assert "no such directory" in line_of(error)
    with pytest.raises(DataError) as error:
        check_checkpoint("no hub id at all")
    assert "no such directory, and no hub id" in line_of(error)
    with pytest.raises(ConfigError, match=r"model\.vlm: scratch"):
        check_checkpoint("scratch")
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(DataError) as error:
        check_checkpoint(str(tmp_path))
    assert "damaged or not whole" in line_of(error)


@pytest.mark.usefixtures("never_loaded")
def test_a_processor_without_a_chat_template_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError) as error:
        build(tmp_path)
    assert "has no chat template" in line_of(error)


def test_adapters_for_layers_that_are_not_there_name_the_nearest(checkpoint: Path) -> None:
    with pytest.raises(ConfigError) as error:
        build(checkpoint, VlmConfig.model_validate({"language": {"rank": 2, "targets": ["q_prj"]}}))
    assert line_of(error).startswith("vlm.language.targets: q_prj: no linear layer of the language side is called so")
    assert "q_proj" in line_of(error)
    with pytest.raises(ConfigError) as error:
        build(checkpoint, VlmConfig.model_validate({"vision": {"rank": 2, "targets": ["q_proj"]}}))
    assert line_of(error).startswith("vlm.vision.targets: q_proj")


def test_adapters_go_where_they_are_asked_for(checkpoint: Path) -> None:
    sides = {"language": {"rank": 2, "targets": ["q_proj"]}, "vision": {"rank": 3, "targets": ["attn.qkv"]}}
    built = build(checkpoint, VlmConfig.model_validate(sides))
    found = {name.rpartition(".lora_")[0]: parameter for name, parameter in built.objective.named_parameters()}
    assert {name.rpartition(".")[2] for name in found} == {"q_proj", "qkv"}
    ranks = {name: p.shape[0] for name, p in built.objective.named_parameters() if "lora_A" in name}
    assert {rank for name, rank in ranks.items() if "q_proj" in name} == {2}
    assert {rank for name, rank in ranks.items() if "qkv" in name} == {3}


def test_the_last_layer_of_llavas_vision_tower_is_not_adapted(tmp_path: Path) -> None:
    built = build(write_checkpoint("llava", tmp_path), VlmConfig.model_validate({"vision": {"rank": 2}}))
    adapted = {name for name, _ in built.objective.named_parameters() if "vision_tower" in name}
    assert any(".layers.0." in name for name in adapted)
    assert not any(".layers.1." in name for name in adapted), "its states are never read"


def test_a_limit_beyond_the_context_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError) as error:
        build(checkpoint, VlmConfig(max_tokens=10_000))
    assert line_of(error).startswith("vlm.max_tokens: 10,000, but")


def visit(*texts: str, images: int = 1, size: int = 112) -> SeenVisit:
    rows = [Row(text, item, targets=(Target("yes", 1.0),)) for item, text in enumerate(texts)]
    shown: list[Tensor] = [zeros(3, size, size).byte() for _ in range(images)]
    return SeenVisit(shown, {"ask": rows}, len(rows), "train/shard-0: image 7")


def test_an_image_with_more_tokens_than_the_context_is_named(checkpoint: Path) -> None:
    collation = build(checkpoint, VlmConfig(max_tokens=40)).collation
    with pytest.raises(DataError) as error:
        collation.collate([visit("Is it red?")], loss_scale=1.0, eyes=OwnSizeEyes(), blanks=1, answering=False)
    assert line_of(error).startswith("train/shard-0: image 7: 1 images give ")
    assert "reads 40" in line_of(error)


def test_a_text_that_holds_a_special_token_is_refused(checkpoint: Path) -> None:
    collation = build(checkpoint).collation
    with pytest.raises(DataError) as error:
        collation.collate(
            [visit("Is <|image_pad|> red?")], loss_scale=1.0, eyes=OwnSizeEyes(), blanks=1, answering=False
        )
    assert line_of(error).startswith("train/shard-0: image 7: 'Is <|image_pad|> red?': holds a special token")


def test_long_questions_are_cut_and_counted(checkpoint: Path) -> None:
    collation = build(checkpoint).collation
    given = {"loss_scale": 1.0, "eyes": OwnSizeEyes(), "blanks": 1, "answering": True}
    batch, cut = collation.collate([visit("x" * 33, "short", "y" * 400)], **given)
    assert cut == 2
    assert batch.with_images_exchanged(1) is None
    assert len(batch.asked.at) == 3


def test_answers_come_back_as_they_were(checkpoint: Path) -> None:
    codec = build(checkpoint).answer_codec
    texts = ["red", "at left", "42"]
    assert codec.decode(codec.answers(texts)) == texts
    assert len(codec.answers(["a" * 50])[0]) == 7, "the end of turn still fits"


def test_bfloat16_weights_are_too_wide_for_fp16(checkpoint: Path, tmp_path: Path) -> None:
    assert build(checkpoint).objective.too_wide_for_fp16 is None
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).bfloat16()
    for file in checkpoint.glob("*.json*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_bytes((checkpoint / "chat_template.jinja").read_bytes())
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert str(tmp_path) in build(tmp_path).objective.too_wide_for_fp16


def leaking(segment: Tensor, _: Tensor) -> Tensor:
    length = segment.shape[1]
    return ones(length, length).tril().bool().expand(len(segment), -1, -1)


def refusing(*_: object) -> Tensor:
    raise TypeError("unexpected keyword argument 'attention_mask'")


@pytest.mark.parametrize("way", [leaking, refusing])
def test_questions_become_rows_where_sharing_would_change_something(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, way: object
) -> None:
    built, cpu = build(checkpoint), torch.device("cpu")
    assert built.settled(cpu, bool) is built
    assert not caplog.records
    monkeypatch.setattr("model.vlm.forward.visible", way)
    settled = built.settled(cpu, bool)
    assert settled.collation.questions == "rows"
    assert not settled.objective.shared
    (line,) = caplog.messages
    assert line.startswith("vlm.questions: shared would change what ")
    assert "every question is a row of its own now" in line
    given = {"loss_scale": 1.0, "eyes": OwnSizeEyes(), "blanks": 1, "answering": True}
    batch, _ = settled.collation.collate([visit("Is it red?", "Is it blue?")], **given)
    assert len(batch.sequences.ids) == 2
    assert settled.objective.evaluate(batch).predictions["answer"].shape[0] == 2


def test_questions_become_rows_where_another_rank_may_not_share(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settled = build(checkpoint).settled(torch.device("cpu"), lambda _: True)
    assert settled.collation.questions == "rows"
    assert "the trial failed on another rank" in caplog.text


def test_in_bfloat16_sharing_is_within_roundings(checkpoint: Path) -> None:
    built, cpu = build(checkpoint), torch.device("cpu")
    built.objective.to(dtype=torch.bfloat16)
    built.objective.place_frozen(cpu, torch.bfloat16)
    assert try_sharing(built.objective, built.collation, cpu).passed
    buffers = {name: value.dtype for name, value in built.objective.model.named_buffers() if "inv_freq" in name}
    assert buffers
    assert set(buffers.values()) == {torch.float32}, "positions would be rounded"
    assert {parameter.dtype for parameter in built.objective.model.parameters()} == {torch.bfloat16}


def test_a_template_that_takes_no_system_turn_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    template = tmp_path / "chat_template.jinja"
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    template.write_text(refusal + template.read_text())
    assert build(tmp_path).answer_codec.system is None
    with pytest.raises(ConfigError) as error:
        build(tmp_path, VlmConfig(system="Be brief."))
    assert "cannot make a question with an image behind vlm.system" in line_of(error)
    assert "no system turn" in line_of(error)


def test_a_picture_that_the_processor_refuses_is_named(checkpoint: Path) -> None:
    narrow = visit("Is it red?")._replace(images=[zeros(3, 1, 400).byte()])
    with pytest.raises(DataError) as error:
        build(checkpoint).collation.collate([narrow], loss_scale=1.0, eyes=OwnSizeEyes(), blanks=1, answering=False)
    assert line_of(error).startswith("train/shard-0: image 7: the processor of ")


def test_items_without_an_answer_are_asked_and_weigh_nothing(checkpoint: Path) -> None:
    collation = build(checkpoint).collation
    seen = visit("Is it red?", "Is it blue?")
    unknown = seen._replace(rows={"ask": [row._replace(targets=()) for row in seen.rows["ask"]]})
    batch, _ = collation.collate([unknown], loss_scale=1.0, eyes=OwnSizeEyes(), blanks=1, answering=True)
    assert not batch.learnt.weight.any()
    assert len(batch.asked.at) == 2


def test_a_template_without_a_place_for_images_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m['role'] }}: hm{% endfor %}")
    with pytest.raises(ConfigError) as error:
        build(tmp_path)
    assert line_of(error) == f"model.vlm: {tmp_path}: its chat template has no place for an image"
