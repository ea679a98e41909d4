"""The objective: what is trained, what is not, and that a loss does not depend on how a step is split."""

import itertools
from collections.abc import Callable

import pytest
import torch

from model.config import LossConfig
from model.fusion_objective import FusionObjective
from model.parts import PARTS as PART_SUMS
from model.parts.seam import Part, PartOutput, Read
from model.towers.reading import Reading
from shards.errors import ConfigError
from shards.read.collate import Batch, Block
from shards.tasks import TASKS
from tests.models import FUSION, random_batch, rows_of, tiny_model

PARTS = ("vision", "second_stream", "match", "answer")
FREEZES = [
    freeze
    for count in range(len(PARTS) + 1)
    for freeze in itertools.combinations(PARTS, count)
    if ("match" in freeze) == ("answer" in freeze)  # scratch towers share their text encoder
]


def part_of(batch: Batch, images: slice) -> Batch:
    """The part of a batch that belongs to some images, as its own batch."""
    blocks = {
        name: rows_of(block, (block.image >= images.start) & (block.image < images.stop))
        for name, block in batch.blocks.items()
    }
    return batch._replace(shown=batch.shown[images], blocks=blocks)


def changed_blocks(batch: Batch, change: Callable[[Block], Block]) -> Batch:
    return batch._replace(blocks={name: change(block) for name, block in batch.blocks.items()})


def without_weight(block: Block) -> Block:
    """A block whose labels and targets all weigh 0."""
    targets = block.targets and block.targets._replace(weight=torch.zeros_like(block.targets.weight))
    return block._replace(weight=torch.zeros_like(block.weight), targets=targets)


@pytest.mark.parametrize("freeze", FREEZES)
def test_registered_parameters_are_exactly_those_that_are_trained(freeze: tuple[str, ...]) -> None:
    objective = tiny_model(freeze=freeze).objective
    registered = {name.split(".")[0] for name, _ in objective.named_parameters()}
    trained = {part for part in PARTS if part not in freeze}
    assert registered == {"fusion"} | trained
    assert all(parameter.requires_grad for parameter in objective.parameters())
    assert {name for name, _ in objective.frozen_towers()} == set(freeze)
    for _, tower in objective.frozen_towers():
        assert not tower.training
        assert not any(parameter.requires_grad for parameter in tower.parameters())


@pytest.mark.parametrize("freeze", FREEZES)
def test_every_trained_parameter_gets_a_gradient_and_no_frozen_one_changes(freeze: tuple[str, ...]) -> None:
    objective = tiny_model(freeze=freeze).objective.train()
    before = {
        (name, key): value.clone()
        for name, tower in objective.frozen_towers()
        for key, value in tower.state_dict().items()
    }
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.01)
    for seed in range(2):
        optimizer.zero_grad()
        objective(random_batch((2, 3), seed=seed)).loss.backward()
        optimizer.step()
    assert [name for name, parameter in objective.named_parameters() if parameter.grad is None] == []
    for name, tower in objective.frozen_towers():
        assert all(parameter.grad is None for parameter in tower.parameters())
        for key, value in tower.state_dict().items():
            assert torch.equal(value, before[name, key]), f"{name}.{key}"


def test_training_mode_reaches_trained_parts_only() -> None:
    objective = tiny_model(freeze=("vision", "match", "answer")).objective.train()
    assert objective.tower("second_stream").training
    assert not objective.tower("vision").training


@pytest.mark.parametrize("cut", [1, 2])
def test_parts_of_a_step_add_up_to_the_whole_however_lopsided(cut: int) -> None:
    batch = random_batch((1, 6, 2))
    whole, split = tiny_model().objective, tiny_model().objective
    output = whole(batch)
    output.loss.backward()
    parts = [split(part_of(batch, images)) for images in (slice(0, cut), slice(cut, 3))]
    sum(part.loss for part in parts).backward()
    torch.testing.assert_close(sum(part.loss for part in parts), output.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sum(part.sums for part in parts), output.sums, rtol=1e-5, atol=1e-6)
    for (name, one), other in zip(whole.named_parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_padding_rows_and_padded_tokens_change_nothing() -> None:
    objective, batch = tiny_model().objective.eval(), random_batch((2, 3))
    pad = torch.nn.functional.pad
    padded = changed_blocks(
        batch, lambda block: block._replace(ids=pad(block.ids, (0, 8)), mask=pad(block.mask, (0, 8)))
    )
    torch.testing.assert_close(objective(padded).sums, objective(batch).sums, rtol=1e-5, atol=1e-6)
    weightless = changed_blocks(batch, without_weight)
    output = objective(weightless)
    assert output.loss == 0
    assert not output.sums.any()
    output.loss.backward()
    assert not any(parameter.grad.any() for parameter in objective.parameters())


def test_the_loss_is_the_weighted_sum_of_its_parts_over_the_questions() -> None:
    batch = random_batch((2, 3))
    objective = tiny_model(losses=LossConfig(itm=0.5, answer=2.0)).objective
    output = objective(batch)
    sums = dict(zip(objective.sum_names, output.sums.tolist(), strict=True))
    assert output.loss.item() == pytest.approx((2.0 * sums["answer_loss"] + 0.5 * sums["itm_loss"]) / 5, rel=1e-5)
    assert sums["answered"] == sums["matched"] == sums["itm_positives"] == sums["itm_negatives"] == 5


def test_evaluation_gives_the_sums_of_training_without_dropout() -> None:
    objective, batch = tiny_model().objective.eval(), random_batch((2, 3))
    evaluated = objective.evaluate(batch)
    torch.testing.assert_close(evaluated.sums, objective(batch).sums)
    assert evaluated.predictions["answer"].shape[0] == 5


class SecondLoss(Part):
    """Another loss on whatever the matching part's sums stand for."""

    def forward(self, read: Read) -> PartOutput:
        loss = read.reading().states.square().mean()
        return PartOutput(loss, (loss.detach(),) * len(PART_SUMS["itm"].names))


def counted_reads(objective: FusionObjective, tower: str, monkeypatch: pytest.MonkeyPatch) -> list[Block]:
    """The blocks that a tower is given to read, from now on."""
    read, blocks = objective.tower(tower).read, []

    def counted(fused: torch.Tensor, block: Block) -> Reading:
        blocks.append(block)
        return read(fused, block)

    monkeypatch.setattr(objective.tower(tower), "read", counted)
    return blocks


def test_parts_that_read_the_same_block_share_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, batch = tiny_model().objective.eval(), random_batch((2, 3))
    answer = objective.parts["answer"]
    objective.parts = {"answer": answer}
    alone = objective(batch).loss
    objective.parts = {"itm": answer._replace(part=SecondLoss(), weight=3.0)}
    other = objective(batch).loss
    objective.parts = {"answer": answer, **objective.parts}
    blocks = counted_reads(objective, "answer", monkeypatch)
    together = objective(batch).loss
    assert len(blocks) == 1
    torch.testing.assert_close(together, alone + other)
    objective.evaluate(batch)
    assert len(blocks) == 2, "losses and predictions share it too"


def test_each_tower_reads_its_own_block_once(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, batch = tiny_model().objective.eval(), random_batch((2, 3))
    asked, matched = (counted_reads(objective, tower, monkeypatch) for tower in ("answer", "match"))
    evaluated = objective.evaluate(batch)
    assert asked == [batch.blocks["ask"]]
    assert matched == [batch.blocks["match"]]
    assert evaluated.predictions.keys() == {"answer", "itm"}


def test_matching_says_how_likely_each_pair_that_counts_belongs_together() -> None:
    objective, batch = tiny_model().objective.eval(), random_batch((2, 3))
    block = batch.blocks["match"]
    likely, truth = objective.evaluate(batch).predictions["itm"].T
    assert ((likely > 0) & (likely < 1)).all()
    assert torch.equal(truth == -1, block.weight == 0)
    assert torch.equal(truth[truth >= 0].long(), block.labels[block.weight > 0])
    sums = dict(zip(objective.sum_names, objective.evaluate(batch).sums.tolist(), strict=True))
    assert ((likely > 0.5) == truth.bool())[truth >= 0].sum() == sums["itm_correct"]


def test_answers_need_no_block_but_the_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, batch = tiny_model().objective.eval(), random_batch((2, 3))
    expected = objective.generate(batch)
    asked, matched = (counted_reads(objective, tower, monkeypatch) for tower in ("answer", "match"))
    found = objective.generate(batch._replace(blocks={"ask": batch.blocks["ask"]}))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert (len(asked), len(matched)) == (1, 0)


@pytest.mark.parametrize("losses", [LossConfig(itm=0.0), LossConfig(answer=0.0)])
def test_the_sums_of_a_part_that_is_left_out_are_zero(losses: LossConfig) -> None:
    objective = tiny_model(losses=losses).objective
    sums = dict(zip(objective.sum_names, objective(random_batch((2, 3))).sums.tolist(), strict=True))
    of_task = {part: known for part, known in PART_SUMS.items() if part in TASKS["gqa"].reads}
    assert list(sums) == [name for part in of_task.values() for name in part.names]
    for part, known in of_task.items():
        assert all((sums[name] > 0) == (part in objective.parts) for name in known.names[:2]), part
        assert part in objective.parts or not any(sums[name] for name in known.names)


@pytest.mark.parametrize(("losses", "missing"), [(LossConfig(itm=0.0), "match"), (LossConfig(answer=0.0), "answer")])
def test_a_loss_of_weight_zero_loads_no_tower(losses: LossConfig, missing: str) -> None:
    built = tiny_model(losses=losses)
    assert built.objective.tower(missing) is None
    assert built.objective(random_batch((2, 3))).loss.isfinite()


def test_equal_references_share_one_text_encoder() -> None:
    objective = tiny_model().objective
    assert objective.tower("match").text_encoder is objective.tower("answer").text_encoder


def test_a_recipe_that_would_train_nothing_is_refused() -> None:
    nothing = {"second_stream": "none", "fusion": {"name": "sum"}, "freeze": PARTS}
    with pytest.raises(
        ConfigError, match=r"model\.fusion: sum .*model\.freeze .*nothing would be trained; set"
    ) as error:
        tiny_model(**nothing)
    assert "\n" not in str(error.value)
    for something in ({"second_stream": "efficient_sam"}, {"fusion": FUSION}, {"freeze": ("match", "answer")}):
        assert any(True for _ in tiny_model(**nothing | something).objective.parameters())


@pytest.mark.parametrize(
    "changes", [{"second_stream": "none"}, {"fusion": {"name": "sum"}}, {"gradient_checkpointing": True}]
)
def test_variants_train_every_parameter(changes: dict) -> None:
    objective = tiny_model(**changes).objective
    objective(random_batch((2, 3))).loss.backward()
    assert [name for name, parameter in objective.named_parameters() if parameter.grad is None] == []


def test_gradient_checkpointing_of_some_layers_or_all_gives_the_same_gradients() -> None:
    batch, gradients = random_batch((2, 3)), []
    for checkpointing in (False, 0.5, True):
        objective = tiny_model(gradient_checkpointing=checkpointing).objective
        objective(batch).loss.backward()
        gradients.append([parameter.grad for parameter in objective.parameters()])
    for plain, some, every in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, some)
        torch.testing.assert_close(plain, every)


def test_the_fusion_starts_the_same_whatever_is_built_around_it() -> None:
    one, other = tiny_model(seed=3), tiny_model(seed=3, losses=LossConfig(itm=0.0))
    for (name, left), right in zip(
        one.objective.fusion.named_parameters(), other.objective.fusion.parameters(), strict=True
    ):
        assert torch.equal(left, right), name
    assert not torch.equal(
        next(iter(tiny_model(seed=4).objective.fusion.parameters())), next(iter(one.objective.fusion.parameters()))
    )
