"""LXMERT's two towers against the states that its own code gave, and what of it is left out and why."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LxmertConfig, LxmertForPreTraining, LxmertModel

from model.build import build_model
from model.config import AnswersConfig, LossConfig, ModelConfig
from model.parts.classify import ClassHead, ClassPart
from model.parts.seam import Read
from model.towers.answer_head import load_answer_head, start_from
from model.towers.hub import load_pretrained
from model.towers.lxmert import DEAD, LxmertTower, RegionTower, dead_modules
from model.towers.reading import Reading
from model.towers.tokenizer import build_tokenizer
from shards.errors import ConfigError
from shards.read.collate import Block, SeenRegions
from shards.tasks import TASKS
from tests.models import WORDS
from tests.regions import NUM_REGIONS, REGION_WIDTH, tiny_config, tiny_lxmert

GOLDEN = Path(__file__).parents[3] / "golden" / "tasks" / "lxmert_pretrain.safetensors"
NUM_DEAD = 17
"""Tensors, counted on LXMERT's own code."""


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def original(golden: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with weights as LXMERT's own code saves them, under its own names."""
    directory = tmp_path_factory.mktemp("original")
    state = {name.removeprefix("w."): value for name, value in golden.items() if name.startswith("w.")}
    config = LxmertConfig(
        vocab_size=60,
        hidden_size=24,
        num_attention_heads=4,
        intermediate_size=48,
        l_layers=2,
        r_layers=1,
        x_layers=2,
        max_position_embeddings=32,
        visual_feat_dim=16,
        num_qa_labels=9,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        architectures=["LxmertForPreTraining"],
    )
    config.save_pretrained(directory)
    torch.save(state, directory / "pytorch_model.bin")
    build_tokenizer(WORDS, vocab_size=60).save_pretrained(directory)
    return str(directory)


def block_of(ids: Tensor, mask: Tensor, image: Tensor | None = None) -> Block:
    rows = torch.arange(len(ids))
    image = rows if image is None else image
    most = int(image.bincount().max())
    return Block(ids, mask, image, rows, torch.ones(len(ids)), torch.zeros(len(ids)), None, most, 1, int(mask.sum()))


def read(model: LxmertModel, seen: SeenRegions, block: Block) -> Reading:
    with torch.no_grad():
        return LxmertTower(model).eval().read(RegionTower(model).encode(seen), block)


def test_states_are_those_of_its_own_code(golden: dict[str, Tensor], original: str):
    model = load_pretrained(original, ("LxmertForPreTraining",)).model.eval()
    assert type(model) is LxmertModel, "without the heads of pre-training"
    block = block_of(golden["ids"], golden["mask"].bool())
    found = read(model, SeenRegions(golden["feats"], golden["boxes"]), block)
    assert float((found.states - golden["lang"]).abs().max()) <= 6e-7
    assert float((found.pooled - golden["pooled"]).abs().max()) <= 6e-7


def test_its_head_over_answers_gives_its_logits_and_the_loss_of_its_own_code(golden: dict[str, Tensor], original: str):
    answers = tuple(f"answer {number}" for number in range(9))
    head = ClassHead("lxmert", width=24, rows_per_item=1, num_classes=9)
    assert start_from(head.layers, answers, load_answer_head(original, answers)) == 9
    block = block_of(golden["ids"], golden["mask"].bool())._replace(labels=golden["answer"].clamp(min=0))
    given = Read(block, lambda: Reading(golden["lang"], golden["pooled"]))
    with torch.no_grad():
        part = ClassPart(head, soft=False)
        assert float((part.predict(given) - golden["answer_logits"]).abs().max()) <= 6e-7
        weight = (golden["answer"] >= 0).float()  # a sentence about another image asks nothing
        loss = part.forward(given._replace(block=block._replace(weight=weight))).loss / weight.sum()
    expected = json.loads(GOLDEN.with_suffix(".json").read_text())
    assert float(loss) == pytest.approx(expected["losses"][expected["order"].index("QA")], rel=1e-5)


@pytest.mark.parametrize("outer", ["", "module."])
def test_what_its_own_code_has_fine_tuned_is_read_with_its_head(original: str, outer: str, tmp_path: Path):
    """BEST.pth of a task: the encoder inside of `lxrt_encoder.model`, the head under a name of its own."""
    state = torch.load(Path(original) / "pytorch_model.bin")
    tuned = {f"{outer}lxrt_encoder.model.{name}": value for name, value in state.items() if name.startswith("bert.")}
    for name, value in state.items():
        if name.startswith("answer_head.logit_fc."):
            tuned[f"{outer}{name.removeprefix('answer_head.')}"] = value
    shutil.copytree(original, tmp_path / "tuned")
    torch.save(tuned, tmp_path / "tuned" / "pytorch_model.bin")
    found, expected = (
        load_pretrained(str(place), ("LxmertForPreTraining",)).model.state_dict()
        for place in (tmp_path / "tuned", original)
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    answers = tuple(f"answer {number}" for number in range(9))
    own, other = (load_answer_head(str(place), answers).state for place in (tmp_path / "tuned", original))
    assert len(own) == len(other) > 4
    assert all(torch.equal(value, other[name]) for name, value in own.items())


def tiny_model(**changes: object) -> LxmertModel:
    torch.manual_seed(0)
    return LxmertModel(tiny_config(vocab_size=60, **changes)).eval()


def random_input(*, images: int = 2, rows: int = 5, length: int = 8) -> tuple[SeenRegions, Block]:
    generator = torch.Generator().manual_seed(1)
    seen = SeenRegions(
        torch.randn(images, NUM_REGIONS, REGION_WIDTH, generator=generator),
        torch.rand(images, NUM_REGIONS, 4, generator=generator),
    )
    mask = torch.arange(length) < torch.randint(2, length + 1, (rows, 1), generator=generator)
    ids = torch.randint(5, 60, (rows, length), generator=generator) * mask
    return seen, block_of(ids, mask, torch.arange(rows) * images // rows)


def test_regions_are_encoded_once_and_read_as_by_the_whole_model():
    model, (seen, block) = tiny_model(), random_input()
    found = read(model, seen, block)
    with torch.no_grad():
        whole = model(
            input_ids=block.ids,
            attention_mask=block.mask.float(),
            visual_feats=seen.features[block.image],
            visual_pos=seen.boxes[block.image],
        )
    torch.testing.assert_close(found.pooled, whole.pooled_output, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.states, whole.language_output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("x_layers", [1, 2, 3])
def test_exactly_what_is_left_out_never_gets_a_gradient(x_layers: int):
    model, (seen, block) = tiny_model(x_layers=x_layers).train(), random_input()
    model(
        input_ids=block.ids,
        attention_mask=block.mask.float(),
        visual_feats=seen.features[block.image],
        visual_pos=seen.boxes[block.image],
    ).pooled_output.square().sum().backward()
    without = {name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()}
    dead = dead_modules(model.config)
    assert without == {name for name, _ in model.named_parameters() if name.startswith(dead)}
    assert len(without) == NUM_DEAD
    assert all(DEAD.values()), "each with its reason"
    registered = {
        *dict(RegionTower(model).module.named_parameters()),
        *dict(LxmertTower(model).named_parameters()),
    }
    assert registered == dict(model.named_parameters()).keys() - without, "and nothing else, under its own names"


def test_recomputed_layers_give_the_same_gradients():
    found = []
    for checkpointing in (False, True):
        model, (seen, block) = tiny_model(), random_input()
        tokens = RegionTower(model, checkpointing=checkpointing).encode(seen)
        LxmertTower(model, checkpointing=checkpointing).read(tokens, block).pooled.square().sum().backward()
        found.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[1][name], value) for name, value in found[0].items())


def build(**model: object):
    return build_model(
        ModelConfig.model_validate({"second_stream": "none", "fusion": {"name": "sum"}, "freeze": (), **model}),
        LossConfig(itm=0.0, answer=0.0, classify=1.0),
        task=TASKS["lxmert"],
        answers=AnswersConfig(),
        classes=("red", "blue"),
        seed=0,
        max_question_tokens=16,
        max_answer_tokens=6,
        scratch_tokenizer=lambda: build_tokenizer(WORDS, vocab_size=60),
    )


def test_the_sum_of_a_single_stream_is_the_stream(tmp_path: Path):
    lxmert = tiny_lxmert(tmp_path)
    built = build(vision=lxmert, match=lxmert)
    seen, _ = random_input()
    with torch.no_grad():
        assert torch.equal(built.objective.fuse(seen), built.objective.image_tokens(seen))
    assert not list(built.objective.fusion.parameters())
    assert built.image_size is None
    assert built.layouts["ask"].codec.questions(["is it red"])[0][0][0] == built.match_codec.tokenizer.cls_token_id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"match": "scratch"}, r"model\.match: scratch, and model\.vision is .*: the two halves of one LXMERT"),
        ({"vision": "scratch"}, r"model\.match: \S+, and model\.vision is scratch: the two halves"),
        ({"second_stream": "efficient_sam"}, r"model\.second_stream: efficient_sam looks at pixels"),
        ({"lora": {"match": {"rank": 2, "targets": ["query"]}}}, r"model\.lora\.match: an LXMERT is trained whole"),
    ],
)
def test_what_does_not_go_with_it_is_one_line(tmp_path: Path, changes: dict[str, object], message: str):
    lxmert = tiny_lxmert(tmp_path)
    with pytest.raises(ConfigError, match=message) as told:
        build(**{"vision": lxmert, "match": lxmert, **changes})
    assert "\n" not in str(told.value)


def test_a_checkpoint_without_a_head_over_answers_cannot_be_started_from(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path)
    build_tokenizer(WORDS, vocab_size=60).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"answers\.start_from=.*weights are missing: answer_head"):
        load_answer_head(str(tmp_path), ("red",))


def test_transformers_reads_the_weights_of_pre_training_that_were_saved(tmp_path: Path):
    directory = tiny_lxmert(tmp_path)
    whole, base = LxmertForPreTraining.from_pretrained(directory), load_pretrained(directory, ("LxmertForPreTraining",))
    expected = whole.lxmert.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in base.model.state_dict().items())
