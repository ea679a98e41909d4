"""The loop around an engine that only keeps books: which step comes when, what is saved, and when it is enough."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model.objective import StepOutput
from model.parts import PARTS, sum_names
from tests.runs import TOTAL_STEPS, write_recipe
from trainer.config import RunConfig, load_config
from trainer.engine.distributed import World
from trainer.engine.engine import Update
from trainer.reporting.progress import Console, Progress
from trainer.reporting.recorders import Recorders
from trainer.run_directory import RunDirectory
from trainer.tasks import task_named
from trainer.training.early_stopping import EarlyStopping
from trainer.training.loop import MAX_UNAPPLIED_STEPS, DivergedError, fit, seed_generators
from trainer.training.milestones import Milestones
from trainer.training.schedule import learning_rate, schedule_of
from trainer.training.sight import SightWatch
from trainer.training.state import HOST_SUMS, Run, TrainState

ACCUMULATION = 2
SUM_NAMES = sum_names(PARTS)
SUMS = dict.fromkeys(SUM_NAMES, 0.0) | {"answer_loss": 6.0, "answered": 4.0, "itm_loss": 1.0, "matched": 2.0}
"""Of a micro-batch."""
FINE = Update(applied=True, grad_norm=1.0, loss_scale=1.0, skipped_steps=0)
LEFT_OUT = FINE._replace(applied=False, grad_norm=None)


@dataclass
class Ledger:
    """Stands for engine, loader and checkpoints, and writes down what is asked of them."""

    update_of: Callable[[int], Update] = lambda _: FINE
    """By optimizer step, counted from 0."""
    before_step: Callable[[int], None] = lambda _: None
    first_step: int = 0
    keys: list[tuple[int, int, int]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    draws: list[float] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    exported: list[int] = field(default_factory=list)

    def batches(self, keys: list[tuple[int, int, int]]) -> Iterator[SimpleNamespace]:
        for key in keys:
            self.keys.append(key)
            batch = SimpleNamespace(to=lambda _: None)
            yield SimpleNamespace(batch=batch, num_items=3, items_cut=1, rows_missing=0)

    def set_learning_rate(self, rate: float) -> None:
        self.before_step(self.first_step + len(self.rates))
        self.rates.append(rate)
        self._micro_steps = 0

    def __call__(self, _: None) -> StepOutput:
        self.draws.append(float(torch.rand(())))
        return StepOutput(torch.tensor(0.0), torch.tensor([SUMS[name] for name in SUM_NAMES]))

    def backward(self, _: torch.Tensor) -> None:
        self._micro_steps += 1

    def await_gradients(self) -> None:
        """Nothing is computed here, and so nothing is behind."""

    def step(self) -> Update | None:
        last = self._micro_steps == ACCUMULATION
        return self.update_of(self.first_step + len(self.rates) - 1) if last else None

    def export_state(self) -> None:
        """Nothing: rank 0 alone would have tensors."""

    def save(self, tag: str, _state: None, progress: dict) -> str:
        assert tag == f"step{progress['global_step']:08d}"
        self.saved.append(progress["global_step"])
        return tag

    def publish(self, pointer: str, _name: str) -> None:
        assert pointer == "last"


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_config(write_recipe(tmp_path / "tiny.yaml", {"train": "train"}), ["checkpoint.every_steps=3"])


@pytest.fixture
def stop() -> SimpleNamespace:
    return SimpleNamespace(requested=False, reason=None)


@pytest.fixture
def new_run(config: RunConfig, stop: SimpleNamespace, tmp_path: Path, monkeypatch) -> Callable[..., Run]:
    """Makes a run without validation data: 2 epochs of 5 steps."""

    def make(ledger: Ledger) -> Run:
        monkeypatch.setattr(
            "trainer.training.loop.export_last", lambda _run, state: ledger.exported.append(state.global_step)
        )
        monkeypatch.setattr("trainer.training.loop.summary", lambda _run, _state: [])  # it reads the export
        milestones = Milestones.of(config, steps_per_epoch=5)
        return Run(
            config=config,
            task=task_named(config.task),
            directory=RunDirectory(tmp_path / "run"),
            world=World(),
            built=SimpleNamespace(objective=SimpleNamespace(sum_names=SUM_NAMES, parts={})),
            engine=ledger,
            train_batches=SimpleNamespace(accumulation=ACCUMULATION),
            train_loader=ledger,
            validation=None,
            milestones=milestones,
            schedule=schedule_of(config.optim, milestones.total_steps),
            checkpoints=ledger,
            identity={},
            recorder=Recorders([]),
            pictures=None,
            sight=SightWatch(),
            console=Console(total_steps=milestones.total_steps, every_steps=1, is_main=False),
            progress=Progress(total_steps=milestones.total_steps, total_validations=0, questions_per_validation=0),
            stop=stop,
        )

    return make


def new_state(step: int = 0) -> TrainState:
    return TrainState(early_stopping=EarlyStopping(), sum_names=(*SUM_NAMES, *HOST_SUMS), global_step=step)


def state_at(step: int = 0) -> TrainState:
    state = new_state(step)
    state.saved_step = step or None
    return state


def keys_of(steps: range) -> list[tuple[int, int, int]]:
    return [(step // 5, step % 5, micro) for step in steps for micro in range(ACCUMULATION)]


def test_every_micro_batch_of_every_epoch_is_trained_once_in_order(new_run):
    ledger, state = Ledger(), state_at()
    outcome = fit(new_run(ledger), state)
    assert outcome.finished
    assert ledger.keys == keys_of(range(TOTAL_STEPS))
    assert state.global_step == TOTAL_STEPS
    assert ledger.exported == [TOTAL_STEPS]


def test_a_run_without_validations_says_at_its_end_how_many_questions_were_cut(new_run, monkeypatch):
    told = []
    monkeypatch.setattr("trainer.training.loop.report_data", lambda _, window: told.append(window))
    fit(new_run(Ledger()), state_at())
    micro_batches = TOTAL_STEPS * ACCUMULATION
    assert [(window["questions"], window["questions_cut"]) for window in told] == [(3 * micro_batches, micro_batches)]


@pytest.mark.parametrize("step", [3, 5, 9, 10])
def test_a_resumed_run_does_the_rest(new_run, step: int):
    whole, rest = Ledger(), Ledger(first_step=step)
    fit(new_run(whole), state_at())
    assert fit(new_run(rest), state_at(step)).finished
    assert rest.keys == keys_of(range(step, TOTAL_STEPS))
    assert rest.rates == whole.rates[step:]
    assert rest.draws == whole.draws[step * ACCUMULATION :]


def test_steps_have_the_rates_of_the_schedule(new_run, config: RunConfig):
    ledger = Ledger()
    fit(new_run(ledger), state_at())
    optim = config.optim
    assert ledger.rates == [
        learning_rate(step, peak=optim.lr, warmup_steps=optim.warmup_steps, total_steps=TOTAL_STEPS, final_ratio=0.0)
        for step in range(TOTAL_STEPS)
    ]


def test_a_run_is_saved_before_it_starts_at_its_interval_and_at_the_ends_of_epochs(new_run):
    ledger = Ledger()
    fit(new_run(ledger), state_at())
    assert ledger.saved == [0, 3, 5, 6, 9, 10]


@pytest.mark.parametrize("step", [1, 2, 5, 9])
def test_a_signal_ends_the_step_saves_once_and_leaves(new_run, stop: SimpleNamespace, step: int):
    def arrive(at: int) -> None:
        stop.requested, stop.reason = at == step - 1, "SIGTERM"

    ledger, state = Ledger(before_step=arrive), state_at()
    outcome = fit(new_run(ledger), state)
    assert not outcome.finished
    assert outcome.message == f"stopped by SIGTERM at step {step}, saved; run the same command again to go on"
    assert ledger.saved.count(step) == 1
    assert ledger.saved[-1] == state.global_step == step
    assert not ledger.exported


def test_a_signal_at_the_last_step_leaves_the_export_to_the_next_start(new_run, stop: SimpleNamespace):
    def arrive(at: int) -> None:
        stop.requested = at == TOTAL_STEPS - 1

    ledger, state = Ledger(before_step=arrive), state_at()
    assert not fit(new_run(ledger), state).finished
    stop.requested = False
    assert fit(new_run(ledger), state).finished
    assert ledger.exported == [TOTAL_STEPS]


@pytest.fixture
def long_run(new_run):
    """Makes a run of 20 epochs."""

    def make(ledger: Ledger) -> Run:
        run = new_run(ledger)
        object.__setattr__(
            run, "milestones", Milestones(steps_per_epoch=5, total_steps=100, validate_every=None, save_every=None)
        )
        return run

    return make


def test_too_many_steps_in_a_row_without_finite_gradients_end_the_run(long_run):
    ledger, state = Ledger(update_of=lambda step: LEFT_OUT if step >= 7 else FINE), state_at()
    with pytest.raises(
        DivergedError, match=r"step 32: gradients were not finite for 25 steps in a row; lower optim\.lr"
    ):
        fit(long_run(ledger), state)
    assert len(ledger.rates) == 7 + MAX_UNAPPLIED_STEPS


def test_one_finite_step_in_time_is_enough(long_run):
    ledger, state = Ledger(update_of=lambda step: FINE if step % MAX_UNAPPLIED_STEPS == 0 else LEFT_OUT), state_at()
    assert fit(long_run(ledger), state).finished
    assert state.unapplied_steps == MAX_UNAPPLIED_STEPS - 1


def test_a_search_for_the_loss_scale_is_no_divergence(long_run):
    searching = LEFT_OUT._replace(loss_scale=2.0)
    assert fit(long_run(Ledger(update_of=lambda _: searching)), state_at()).finished


def test_unapplied_steps_are_counted_over_restarts(long_run):
    ledger, state = Ledger(update_of=lambda _: LEFT_OUT, first_step=50), state_at(50)
    state.unapplied_steps = 20
    with pytest.raises(DivergedError):
        fit(long_run(ledger), state)
    assert len(ledger.rates) == MAX_UNAPPLIED_STEPS - 20


def test_losses_are_weighted_sums_over_all_micro_batches_since_the_last_report(new_run, monkeypatch):
    shown = []
    monkeypatch.setattr(Recorders, "record", lambda _, step, values: shown.append((step, values)))
    fit(new_run(Ledger()), state_at())
    assert [step for step, _ in shown] == list(range(1, TOTAL_STEPS + 1))
    for _, values in shown:
        assert values["progress/questions_cut"] == ACCUMULATION
        assert (values["train/answer_loss"], values["train/itm_loss"]) == (1.5, 0.5)
        assert values["train/loss"] == 2.0


class BehindItsHost(Ledger):
    """A device whose host launches a backward pass in one second, and waits nine for the gradients of a step."""

    now = 0.0

    def backward(self, loss: torch.Tensor) -> None:
        super().backward(loss)
        self.now += 1.0

    def await_gradients(self) -> None:
        self.now += 9.0 * (self._micro_steps == ACCUMULATION)


def test_a_device_that_is_waited_for_before_the_optimizer_is_what_bounds_the_run(new_run):
    ledger = BehindItsHost()
    run = new_run(ledger)
    run.gauge.asynchronous, run.gauge.clock = True, lambda: ledger.now
    fit(run, state_at())
    assert run.gauge.latest.bound_by == "compute"
    assert run.gauge.latest.compute == pytest.approx(1.0)


def test_generators_depend_on_seed_step_micro_step_and_rank_alone():
    def draw(*position: int) -> float:
        seed_generators(*position)
        return float(torch.rand(()))

    positions = [
        (seed, step, micro, rank) for seed in (0, 1) for step in (0, 1, 11) for micro in (0, 1) for rank in (0, 1)
    ]
    first = [draw(*position) for position in positions]
    assert len(set(first)) == len(positions)
    assert [draw(*position) for position in reversed(positions)] == first[::-1]


def test_a_state_comes_back_from_a_checkpoint_as_it_was():
    state = state_at(7)
    state.metrics, state.best_step, state.unapplied_steps = {"val/loss": 0.5}, 5, 3
    state.since_log[0], state.since_validation[1] = 1.5, 2.5
    state.early_stopping.observe(0.5)
    again = new_state()
    again.load(state.as_dict())
    assert again == state
