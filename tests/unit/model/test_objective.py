"""The objective: what is trained, what is not, and that a loss does not depend on how a step is split."""

import itertools

import pytest
import torch

from model.config import LossConfig
from model.objective import SUM_NAMES
from shards.errors import ConfigError
from shards.read.collate import Batch
from tests.models import FUSION, random_batch, tiny_model

PARTS = ("vision", "second_stream", "match", "answer")
FREEZES = [
    freeze
    for count in range(len(PARTS) + 1)
    for freeze in itertools.combinations(PARTS, count)
    if ("match" in freeze) == ("answer" in freeze)  # scratch towers share their text encoder
]


def rows_of(batch: Batch, images: slice) -> Batch:
    """The part of a batch that belongs to some images, as its own batch."""
    first, last = images.start, images.stop
    asked = (batch.question_image >= first) & (batch.question_image < last)
    paired = (batch.match_image >= first) & (batch.match_image < last)
    fields = {}
    for name, value in batch._asdict().items():
        if name == "pixels":
            value = value[images]
        elif name.startswith(("question_", "answer_")):
            value = value[asked]
        elif name.startswith("match_"):
            value = value[paired]
        fields[name] = value - first if name in ("question_image", "match_image") else value
    part = Batch(**fields)
    counts = part.question_image.bincount()
    return part._replace(
        match_question=part.match_question - int(part.match_question.min()),
        questions_per_image=int(counts.max()),
        pairs_per_image=2 * int(counts.max()),
        tokens_in_questions=int(part.question_mask.sum()),
        tokens_in_pairs=int(part.match_mask.sum()),
    )


@pytest.mark.parametrize("freeze", FREEZES)
def test_registered_parameters_are_exactly_those_that_are_trained(freeze: tuple[str, ...]) -> None:
    objective = tiny_model(freeze=freeze).objective
    registered = {name.split(".")[0] for name, _ in objective.named_parameters()}
    trained = {part for part in PARTS if part not in freeze}
    assert registered == {"fusion"} | trained
    assert all(parameter.requires_grad for parameter in objective.parameters())
    assert {name for name, _ in objective.frozen_parts()} == set(freeze)
    for _, tower in objective.frozen_parts():
        assert not tower.training
        assert not any(parameter.requires_grad for parameter in tower.parameters())


@pytest.mark.parametrize("freeze", FREEZES)
def test_every_trained_parameter_gets_a_gradient_and_no_frozen_one_changes(freeze: tuple[str, ...]) -> None:
    objective = tiny_model(freeze=freeze).objective.train()
    before = {
        (name, key): value.clone()
        for name, tower in objective.frozen_parts()
        for key, value in tower.state_dict().items()
    }
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.01)
    for seed in range(2):
        optimizer.zero_grad()
        objective(random_batch((2, 3), seed=seed)).loss.backward()
        optimizer.step()
    assert [name for name, parameter in objective.named_parameters() if parameter.grad is None] == []
    for name, tower in objective.frozen_parts():
        assert all(parameter.grad is None for parameter in tower.parameters())
        for key, value in tower.state_dict().items():
            assert torch.equal(value, before[name, key]), f"{name}.{key}"


def test_training_mode_reaches_trained_parts_only() -> None:
    objective = tiny_model(freeze=("vision", "match", "answer")).objective.train()
    assert objective.part("second_stream").training
    assert not objective.part("vision").training


@pytest.mark.parametrize("cut", [1, 2])
def test_parts_of_a_step_add_up_to_the_whole_however_lopsided(cut: int) -> None:
    batch = random_batch((1, 6, 2))
    whole, split = tiny_model().objective, tiny_model().objective
    output = whole(batch)
    output.loss.backward()
    parts = [split(rows_of(batch, images)) for images in (slice(0, cut), slice(cut, 3))]
    sum(part.loss for part in parts).backward()
    torch.testing.assert_close(sum(part.loss for part in parts), output.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sum(part.sums for part in parts), output.sums, rtol=1e-5, atol=1e-6)
    for (name, one), other in zip(whole.named_parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_padding_rows_and_padded_tokens_change_nothing() -> None:
    objective, batch = tiny_model().objective.eval(), random_batch((2, 3))
    padded = batch._replace(
        question_ids=torch.nn.functional.pad(batch.question_ids, (0, 8)),
        question_mask=torch.nn.functional.pad(batch.question_mask, (0, 8)),
        match_ids=torch.nn.functional.pad(batch.match_ids, (0, 8)),
        match_mask=torch.nn.functional.pad(batch.match_mask, (0, 8)),
    )
    torch.testing.assert_close(objective(padded).sums, objective(batch).sums, rtol=1e-5, atol=1e-6)
    weightless = batch._replace(
        answer_weight=torch.zeros_like(batch.answer_weight), match_weight=torch.zeros_like(batch.match_weight)
    )
    output = objective(weightless)
    assert output.loss == 0
    assert not output.sums.any()
    output.loss.backward()
    assert not any(parameter.grad.any() for parameter in objective.parameters())


def test_the_loss_is_the_weighted_sum_of_its_parts_over_the_questions() -> None:
    batch = random_batch((2, 3))
    output = tiny_model(losses=LossConfig(itm=0.5, answer=2.0)).objective(batch)
    sums = dict(zip(SUM_NAMES, output.sums.tolist(), strict=True))
    assert output.loss.item() == pytest.approx((2.0 * sums["answer_loss"] + 0.5 * sums["itm_loss"]) / 5, rel=1e-5)
    assert sums["answered"] == sums["matched"] == sums["itm_positives"] == sums["itm_negatives"] == 5


def test_evaluation_gives_the_sums_of_training_without_dropout() -> None:
    objective, batch = tiny_model().objective.eval(), random_batch((2, 3))
    evaluated = objective.evaluate(batch)
    torch.testing.assert_close(evaluated.sums, objective(batch).sums)
    assert evaluated.answer_ids.shape[0] == 5


@pytest.mark.parametrize(("losses", "missing"), [(LossConfig(itm=0.0), "match"), (LossConfig(answer=0.0), "answer")])
def test_a_loss_of_weight_zero_loads_no_tower(losses: LossConfig, missing: str) -> None:
    built = tiny_model(losses=losses)
    assert built.objective.part(missing) is None
    assert built.objective(random_batch((2, 3))).loss.isfinite()


def test_equal_references_share_one_text_encoder() -> None:
    objective = tiny_model().objective
    assert objective.part("match").text_encoder is objective.part("answer").text_encoder


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


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    batch, gradients = random_batch((2, 3)), []
    for checkpointing in (False, True):
        objective = tiny_model(gradient_checkpointing=checkpointing).objective
        objective(batch).loss.backward()
        gradients.append([parameter.grad for parameter in objective.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_the_fusion_starts_the_same_whatever_is_built_around_it() -> None:
    one, other = tiny_model(seed=3), tiny_model(seed=3, losses=LossConfig(itm=0.0))
    for (name, left), right in zip(
        one.objective.fusion.named_parameters(), other.objective.fusion.parameters(), strict=True
    ):
        assert torch.equal(left, right), name
    assert not torch.equal(
        next(iter(tiny_model(seed=4).objective.fusion.parameters())), next(iter(one.objective.fusion.parameters()))
    )
