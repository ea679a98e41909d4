"""A run as a whole: the same losses however it is spread, the same bits however it is interrupted, a word per fault.

Three launches serve all tests: a process alone and two ranks, which train many tiny runs each, and two ranks that meet
a damaged image.
"""

import json
import math
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.processes.ranks import live_ranks
from shards.format.index import read_index
from shards.plan import PADDING, Share
from shards.read.micro_batches import Split
from tests.distributed.launch import launch_ranks
from tests.distributed.training_runs import LORA, Runs, train_alone, train_together
from tests.runs import NO_COMPILER, STEPS_PER_EPOCH, TOTAL_STEPS, LeftOver, evaluate_run, write_recipe, write_shards
from tests.selection import STAGES, STAGES_EVERY_DAY, chosen, with_slow
from trainer.config import load_config
from trainer.config.schema import plan_order
from trainer.engine.state_file import MODEL, verify_checkpoint
from trainer.training.early_stopping import EarlyStopping
from trainer.training.loop import MAX_UNAPPLIED_STEPS

pytestmark = pytest.mark.distributed

DONE, MISTAKE, STOPPED, KILLED = 0, 2, 75, -9


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, data: dict[str, str]) -> Runs:
    return train_alone(tmp_path_factory.mktemp("alone"), data)


@pytest.fixture(scope="module")
def together(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data: dict[str, str], alone: Runs
) -> Runs:
    return train_together(tmp_path_factory.mktemp("together"), data, alone, sorted(chosen(request, "adapted_at")))


def test_in_the_last_step_of_an_epoch_one_rank_has_only_padding(data: dict[str, str], tmp_path: Path):
    """The ground on which the tests below stand: their ranks are as unlike as they can be."""
    order = plan_order(load_config(write_recipe(tmp_path / "tiny.yaml", data)))
    epoch = Split(data["train"], order).epoch(0)
    assert epoch.num_steps == STEPS_PER_EPOCH
    of_ranks = [
        [
            epoch.micro_batch(STEPS_PER_EPOCH - 1, micro, Share(rank=rank, world_size=2, micro_visits=2))
            for micro in (0, 1)
        ]
        for rank in (0, 1)
    ]
    idle = [all((visits == PADDING).all() for visits in micro_batches) for micro_batches in of_ranks]
    assert sorted(idle) == [False, True]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("launch", ["alone", "together"])
def test_losses_are_the_same_at_every_stage_and_world_size(launch: str, stage: int, alone: Runs, request):
    runs: Runs = request.getfixturevalue(launch)
    assert set(runs.codes[f"zero{stage}"]) == {DONE}
    _assert_same_losses(runs[f"zero{stage}"], alone["zero1"])


def test_a_chosen_policy_is_said_and_changes_no_loss(alone: Runs, together: Runs):
    assert set(together.codes["auto"]) == {DONE}
    assert "engine.policy: auto chose ZeRO-" in together.said("auto")
    _assert_same_losses(together["auto"], alone["zero1"])


@pytest.mark.parametrize("stage", [1, 3])
def test_losses_between_frozen_towers_are_the_same_too(stage: int, alone: Runs, together: Runs):
    _assert_same_losses(together[f"frozen{stage}"], alone["frozen"])
    weights = load_file(together[f"frozen{stage}"].checkpoint("last") / MODEL)
    assert {name.split(".")[0] for name in weights} == {"fusion"}


@pytest.mark.parametrize("adapted_at", with_slow(STAGES, STAGES_EVERY_DAY))
@pytest.mark.parametrize("tower", LORA)
def test_adapters_learn_the_same_at_every_stage_and_lie_in_the_export(
    tower: str, adapted_at: int, alone: Runs, together: Runs
):
    name = f"lora_{tower}{adapted_at}"
    assert together.codes[name] == [DONE, DONE], together.said(name)
    run, parts = together[name], {"blip": ("match", "answer"), "t5": ("answer",)}[tower]
    _assert_same_losses(run, alone[f"lora_{tower}"])
    weights = load_file(run.checkpoint("last") / MODEL)
    assert {name.split(".")[0] for name in weights} == {"fusion", "lora"}
    assert all(value.any() for name, value in weights.items() if "lora_B" in name), "every adapter has learnt"
    assert run.exported["adapters"] == {part: f"lora_{part}" for part in parts}
    validated = run.predictions
    evaluate_run(run.path, "val")
    assert run.predictions == validated


def test_a_fusion_that_masks_guide_learns_the_same_on_two_ranks_under_zero_3(alone: Runs, together: Runs):
    assert together.codes["masks3"] == [DONE, DONE], together.said("masks3")
    assert "the fusion runs once per question" in together.said("masks3")
    _assert_same_losses(together["masks3"], alone["masks"])
    assert together["masks3"].predictions == alone["masks"].predictions


def _assert_same_losses(run: LeftOver, expected: LeftOver) -> None:
    assert list(run.losses) == list(range(1, TOTAL_STEPS + 1))
    for step, losses in run.losses.items():
        assert set(losses) == {"train/loss", "train/answer_loss", "train/itm_loss"}
        assert losses == pytest.approx(expected.losses[step], rel=1e-5), step
    # AdamW and clipping would hide gradients that are a multiple of what they should be.
    assert run.grad_norms == pytest.approx(expected.grad_norms, rel=1e-5)


@pytest.mark.parametrize(
    ("launch", "run", "uninterrupted"),
    [
        ("alone", "killed", "dropout"),
        ("alone", "lora_killed", "lora_dropout"),
        ("alone", "exporting", "dropout"),
        ("alone", "validated", "dropout"),
        ("together", "stopped", "dropout"),
        ("together", "validating", "zero1"),
    ],
)
def test_an_interrupted_run_ends_in_the_same_bits(launch: str, run: str, uninterrupted: str, request):
    runs: Runs = request.getfixturevalue(launch)
    resumed, expected = runs[run], runs[uninterrupted]
    assert resumed.status["state"] == expected.status["state"] == "done"
    for pointer in ("last", "best"):
        assert resumed.bits(pointer) == expected.bits(pointer)
        assert resumed.progress(pointer) == expected.progress(pointer)
    assert resumed.records == expected.records
    assert resumed.predictions == expected.predictions
    assert resumed.exported == expected.exported


def test_interruptions_came_when_they_were_meant_to(alone: Runs, together: Runs):
    assert [alone.codes[name] for name in ("killed", "exporting", "validating")] == [[KILLED], [KILLED], [STOPPED]]
    assert [together.codes[name] for name in ("stopped", "validating")] == [[STOPPED] * 2] * 2
    assert "at step 6" in alone.said("killed_again"), "the newest checkpoint lies between the epochs' ends"
    assert "at step 8" in together.said("stopped_again"), "the signal reached one rank in the middle of an epoch"
    assert "a signal on another rank" in together.said("stopped"), "rank 0 says why it stopped"


def test_a_stop_in_a_validation_is_saved_before_it(alone: Runs):
    stopped = alone["validating"]
    assert (stopped.status["state"], stopped.status["exit_code"]) == ("stopped", STOPPED)
    assert "SIGTERM" in stopped.status["message"]
    assert stopped.status["global_step"] == STEPS_PER_EPOCH
    assert (stopped.progress("last")["global_step"], stopped.progress("last")["validated_step"]) == (STEPS_PER_EPOCH, 0)
    assert not stopped.validations
    assert list(alone["validated"].validations) == [STEPS_PER_EPOCH, TOTAL_STEPS]


def test_validation_does_not_depend_on_the_world_size(alone: Runs, together: Runs):
    one, two = (run.validations[STEPS_PER_EPOCH] for run in (alone["validated"], together["elsewhere"]))
    losses = {name for name in one if name.endswith("loss")}
    assert {name: one[name] for name in one.keys() - losses} == {name: two[name] for name in two.keys() - losses}
    assert {name: one[name] for name in losses} == pytest.approx({name: two[name] for name in losses}, rel=1e-6)
    assert one["val/count"] == 25
    assert one["val/itm_accuracy/count"] > one["val/count"]


@pytest.mark.parametrize(
    ("launch", "run"), [("alone", "zero1"), ("alone", "frozen"), ("alone", "bf16"), ("together", "zero3")]
)
def test_the_export_gives_the_predictions_of_its_validation(launch: str, run: str, request, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    trained: LeftOver = request.getfixturevalue(launch)[run]
    validated = trained.validations[trained.exported["step"]]
    predictions = trained.predictions
    metrics, counts = evaluate_run(trained.path, "val")
    assert trained.predictions == predictions
    assert len(json.loads(predictions)) == counts["val/count"] == 25
    found = {name: (metrics | counts)[name] for name in validated}  # an evaluation counts more finely
    assert found == pytest.approx(validated, rel=1e-5)
    for name in validated.keys() - {"val/loss", "val/answer_loss", "val/itm_loss"}:
        assert found[name] == validated[name], name


def test_rank_0_draws_while_the_others_wait_under_zero_3(together: Runs):
    assert together.codes["pictures"] == [DONE, DONE], together.said("pictures")
    events = EventAccumulator(str(together["pictures"].directory.tensorboard)).Reload()
    assert sorted(events.Tags()["images"]) == ["val/confusion", "val/question_1", "val/question_2"]
    assert [image.step for image in events.Images("val/question_1")] == [STEPS_PER_EPOCH]


def test_early_stopping_stops_and_the_best_is_exported(alone: Runs):
    run = alone["early"]
    judge, best = EarlyStopping(mode="max", patience=2), None
    for step, metrics in run.validations.items():
        assert not judge.stopped, f"validated at step {step} after the verdict to stop"
        best = step if judge.observe(metrics["val/accuracy"]).improved else best
    assert judge.stopped
    assert run.status["exit_code"] == DONE
    assert "stopped early after 2 validations" in run.status["message"]
    assert best != max(run.validations), "the last validation was the best, so nothing stopped"
    assert run.progress("best")["global_step"] == run.exported["step"] == best
    assert run.exported["metrics"]
    assert run.exported["metrics"].items() <= run.validations[best].items()


def test_without_validation_data_the_last_weights_are_exported(alone: Runs):
    run = alone["without_val"]
    assert alone.codes["without_val"] == [DONE]
    assert run.exported == {**run.exported, "step": TOTAL_STEPS, "metrics": {}}
    assert not run.validations
    assert not (run.directory.checkpoints / "best").exists()
    _assert_same_losses(run, alone["zero1"])
    trained = load_file(run.checkpoint("last") / MODEL)
    exported = load_file(run.directory.export / "fusion_encoder.safetensors")
    assert exported
    assert all(tensor.equal(trained[f"fusion.{name}"]) for name, tensor in exported.items())


def test_a_run_is_initialized_with_weights_and_nothing_else(alone: Runs):
    run, source = alone["initialized"], alone["zero1"]
    assert alone.codes["initialized"] == [DONE]
    assert run.bits("last")[0] == source.bits("best")[0], "a step of size 1e-30 changes no weight"
    assert run.bits("last")[1] != source.bits("best")[1]
    assert verify_checkpoint(run.checkpoint("last")).optimizer_step == 1
    assert run.progress("last")["early_stopping"]["best"] == run.validations[1]["val/accuracy"]


def test_weights_of_another_model_are_refused_by_name(alone: Runs):
    assert alone.codes["initialized_wrongly"] == [MISTAKE]
    message = alone["initialized_wrongly"].status["message"]
    assert "initialize_from" in message
    assert "fusion.encoder" in message
    assert "is missing" in message


def test_half_precision_computes_nearly_the_same_and_keeps_fp32_weights(alone: Runs):
    run = alone["bf16"]
    losses, expected = ([step["train/loss"] for step in r.losses.values()] for r in (run, alone["zero1"]))
    assert losses == pytest.approx(expected, rel=0.05)
    assert losses != expected
    assert {str(tensor.dtype) for tensor in load_file(run.checkpoint("last") / MODEL).values()} == {"torch.float32"}


def test_matching_without_negatives_is_warned_of(alone: Runs):
    assert alone.codes["always_true"] == [DONE]
    assert "no negatives exist for this data (losses.negatives" in alone.said("always_true")


def test_a_run_that_diverges_says_so_and_leaves_an_intact_checkpoint(alone: Runs):
    run = alone["diverged"]
    assert alone.codes["diverged"] == [MISTAKE]
    assert f"not finite for {MAX_UNAPPLIED_STEPS} steps in a row" in run.status["message"]
    assert "optim.lr" in run.status["message"]
    applied = verify_checkpoint(run.checkpoint("last")).optimizer_step
    assert applied < STEPS_PER_EPOCH
    assert max(run.losses) == applied + MAX_UNAPPLIED_STEPS - 1
    assert all(tensor.isfinite().all() for tensor in load_file(run.checkpoint("last") / MODEL).values())
    assert not math.isfinite(run.losses[max(run.losses)]["train/loss"] or math.nan)


def test_a_world_size_that_does_not_divide_the_lanes_is_refused_by_all_ranks(together: Runs):
    assert together.codes["one_lane"] == [MISTAKE] * 2
    assert "1 lanes cannot be shared by 2 ranks; world sizes that fit: 1" in together["one_lane"].status["message"]
    assert together.said("one_lane").count("world sizes that fit") == 1, "one rank says it"


@pytest.mark.parametrize("launch", ["alone", "together"])
def test_a_run_directory_that_cannot_be_made_is_one_line_from_one_rank(launch: str, request):
    runs = request.getfixturevalue(launch)
    assert set(runs.codes["nowhere"]) == {MISTAKE}
    assert runs.said("nowhere").count("/dev/null/runs/nowhere: cannot make the run's directory") == 1
    assert "Traceback" not in runs.said("nowhere")


@pytest.mark.parametrize("launch", ["alone", "together"])
def test_a_run_in_which_another_process_trains_is_left_alone_by_all_ranks(launch: str, request):
    runs = request.getfixturevalue(launch)
    assert set(runs.codes["occupied"]) == {MISTAKE}
    assert runs.said("occupied").count("another process is training here") == 1
    assert not [path for path in runs["occupied"].path.rglob("*") if path.is_file()], "not even a status or a log"


def test_what_the_start_of_a_run_checks_its_ranks_check_again_before_a_model_is_made(alone: Runs):
    assert alone.codes["initialized_from_nothing"] == [MISTAKE]
    run = alone["initialized_from_nothing"]
    assert run.status["message"].startswith("initialize_from: gone: no such file or directory")
    assert not (run.path / "tokenizer").exists()


def test_a_run_goes_on_under_another_stage_and_number_of_ranks_and_says_so(together: Runs):
    assert together.codes["other_stage"] == [DONE] * 2
    run = together["other_stage"]
    assert run.status["global_step"] == TOTAL_STEPS
    assert run.losses.keys() == set(range(1, TOTAL_STEPS + 1))
    change = "engine.policy: was ds_configs/zero1.json, is ds_configs/zero3.json; the run goes on with the new value"
    assert change in together.said("other_stage")


def test_a_damaged_image_ends_all_ranks_with_its_name(tmp_path: Path):
    data = write_shards(tmp_path)
    recipe = write_recipe(tmp_path / "damaged.yaml", data)
    shard, image_id = _damage(Split(data["train"], plan_order(load_config(recipe))), step=2, rank=1)
    done = launch_ranks("trainer.train", str(recipe), "optim.lr=1e-4", env=NO_COMPILER)
    assert done.returncode != 0
    run = LeftOver(tmp_path / "runs" / "damaged")
    assert run.status["exit_code"] == MISTAKE
    assert shard in run.status["message"]
    assert repr(image_id) in run.status["message"]
    assert run.status["message"] in done.stdout
    assert "Traceback" not in done.stdout, "neither a user's mistake nor its consequences show code"
    assert list(run.losses) == [1, 2]
    assert not live_ranks(run.directory.ranks)


def _damage(split: Split, *, step: int, rank: int) -> tuple[str, str]:
    """Overwrite an image that a rank needs in this step of the first epoch, and no rank before."""
    epoch, share = split.epoch(0), Share(rank=rank, world_size=2, micro_visits=2)
    images = epoch.visits.image[epoch.micro_batch(step, 0, share)]
    image = next(int(image) for image in images if epoch.visits.parts[image] == 1)
    number, position = split.index.locate(image)
    shard = read_index(split.directory).shards[number]
    with open(Path(split.directory) / shard.name, "r+b") as file:
        file.seek(shard.image_offsets[position])
        file.write(bytes(shard.image_bytes[position]))
    return shard.name, shard.image_ids[position]
