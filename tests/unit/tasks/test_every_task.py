"""What holds for every task and every choice of its losses: a row in the tables is all that a new one needs."""

from collections.abc import Callable, Sequence

import msgspec
import pytest
import torch

from shards.plan import PADDING, Share
from shards.read.collate import collate
from shards.read.eyes import eyes_for
from shards.tasks import TASKS
from shards.tasks.seam import Draw, Item, Visit
from tests.task_corpora import CORPORA
from tests.unit.tasks.trials import Choice, Trial, choices, gradients_of, sums_of
from trainer.build import make_texts
from trainer.tasks import task_named

SPLITTINGS = ((1, 1), (2, 4), (4, 1))
"""World size and visits of a micro-batch, beside a process alone with the whole step at once."""

Trials = Callable[[Choice], Trial]

every_choice = pytest.mark.parametrize("choice", choices(), ids=str)


def test_every_task_has_official_files_to_be_tried_with():
    assert CORPORA.keys() <= TASKS.keys()
    assert {TASKS[name].formats for name in CORPORA} == {task.formats for task in TASKS.values()}
    assert all(task_named(name).recipe for name in TASKS)


@every_choice
def test_every_number_of_ranks_gives_the_same_sums_and_losses(trial_of: Trials, choice: Choice):
    trial = trial_of(choice)
    for step in (0, trial.train.steps_per_epoch - 1):
        loss, sums = sums_of(trial.objective, trial.step(step))
        assert loss > 0
        for world_size, micro_visits in SPLITTINGS:
            split = sums_of(trial.objective, trial.step(step, world_size=world_size, micro_visits=micro_visits))
            assert split == (pytest.approx(loss, rel=1e-5), pytest.approx(sums, rel=1e-5))


@every_choice
def test_every_number_of_ranks_measures_the_same(trial_of: Trials, choice: Choice):
    (alone,) = trial_of(choice).evaluation()
    assert "val/accuracy" in alone.metrics or "val/itm_accuracy" in alone.metrics
    for world_size, micro_visits in ((2, 1), (4, 3)):
        ranks = trial_of(choice).evaluation(world_size=world_size, micro_visits=micro_visits)
        assert sum(len(rank.predictions) for rank in ranks) == len(alone.predictions), "no item was met twice"
        assert {name: said for rank in ranks for name, said in rank.predictions.items()} == alone.predictions
        for rank in ranks:
            assert rank.counts == alone.counts
            assert rank.metrics == {
                name: pytest.approx(value, rel=1e-5) if name.endswith("loss") else value
                for name, value in alone.metrics.items()
            }


@every_choice
def test_a_step_is_that_of_its_items_one_at_a_time(trial_of: Trials, choice: Choice):
    trial = trial_of(choice)
    (whole,) = trial.step(0)
    items = list(trial.items_alone(0))
    assert len(items) == whole.num_items > len(whole.samples), "items share images"
    loss, gradients = gradients_of(trial.objective, [whole.batch])
    loss_alone, gradients_alone = gradients_of(trial.objective, items)
    assert loss_alone == pytest.approx(loss, rel=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        # Biases of keys shift all scores of a query alike: their gradient is 0 but for rounding.
        error = float((gradients_alone[name] - gradient).abs().max())
        assert error < 1e-5 * float(gradient.abs().max()) + 1e-7 * largest, name


@every_choice
def test_an_item_is_predicted_as_it_would_be_alone(trial_of: Trials, choice: Choice):
    trial = trial_of(choice)
    (whole,) = trial.step(0)
    together = trial.objective.evaluate(whole.batch).predictions
    alone = [trial.objective.evaluate(batch).predictions for batch in trial.items_alone(0)]
    for part, predicted in together.items():
        rows = [found[part] for found in alone]
        if predicted.is_floating_point():
            # Rows are sorted by image, and the items of a visit stand in their order.
            torch.testing.assert_close(predicted, torch.cat(rows), rtol=1e-5, atol=1e-5)
        else:
            assert [_written(row) for row in predicted] == [_written(row[0]) for row in rows]


@every_choice
def test_every_trained_parameter_has_a_gradient_after_one_step(trial_of: Trials, choice: Choice):
    trial = trial_of(choice)
    batches = trial.step(0, micro_visits=2)
    _, gradients = gradients_of(trial.objective, [item.batch for item in batches], parts=len(batches))
    without = [name for name, gradient in gradients.items() if not gradient.any()]
    assert without == []
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@every_choice
def test_a_micro_batch_without_a_visit_adds_nothing_and_runs_every_layer(trial_of: Trials, choice: Choice):
    trial = trial_of(choice)
    last = trial.train.steps_per_epoch - 1
    empty = [item for item in trial.step(last, world_size=4, micro_visits=1) if item.num_visits == 0]
    assert empty, "the last step of these shards leaves somebody without work"
    assert empty[0].batch.num_images == TASKS[choice.task].images
    output = trial.objective(empty[0].batch)
    assert (float(output.loss.detach()), bool(output.sums.any())) == (0.0, False)
    output.loss.backward()
    gradients = [parameter.grad for parameter in trial.objective.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    trial.objective.zero_grad(set_to_none=True)
    said = trial.objective.evaluate(empty[0].batch)
    assert not said.sums.any()


@every_choice
def test_padding_beside_real_visits_changes_no_sum(trial_of: Trials, choice: Choice):
    trial = trial_of(choice)
    alone, padded = (trial.evaluating(Share(rank=0, world_size=1, micro_visits=size)) for size in (1, 64))
    number = max(range(len(alone.all_keys())), key=lambda key: alone.prepare(key).num_items)
    own = alone.order.micro_batch(number)
    padded.order.micro_batch = lambda _: torch.tensor([*own, *[PADDING] * 3]).numpy()  # type: ignore[method-assign]
    real, with_padding = alone.prepare(number), padded.prepare(0)
    assert with_padding.num_visits == real.num_visits == 1
    assert sums_of(trial.objective, [with_padding]) == sums_of(trial.objective, [real])


@every_choice
def test_items_of_which_nothing_is_known_weigh_nothing(trial_of: Trials, choice: Choice):
    trial = trial_of(choice)
    order, reader, texts = trial.train.epoch(0), trial.train.reader, make_texts(trial.config, trial.built)
    task, visits = TASKS[choice.task], []
    for sample in (0, 3):
        items = [_unknown(item) for item in reader.sample(sample).items]
        visits.append(Visit(sample, items, list(range(len(items)))))
    rows = [task.rows(visit, Draw(order, trial.train.index, reader), texts.wanted).blocks for visit in visits]
    blank = eyes_for(trial.train.index, 32).blank
    sizes = {"items_per_visit": [len(visit.items) for visit in visits], "images_per_visit": [task.images] * len(visits)}
    batch, _ = collate([blank] * (2 * task.images), rows, texts.collation.layouts, loss_scale=1.0, blank=blank, **sizes)
    output = trial.objective(batch)
    assert float(output.loss.detach()) == 0.0
    assert not output.sums.any()


def _written(row: torch.Tensor) -> Sequence[int]:
    """Token ids up to the padding, or a place in a list."""
    return [number for number in row.reshape(-1).tolist() if row.dim() == 0 or number]


def _unknown(item: Item) -> Item:
    """An item without its answers or its label."""
    blank = {"answer": None, "answers": (), "label": None}
    return msgspec.structs.replace(item, **{name: blank[name] for name in item.__struct_fields__ if name in blank})
