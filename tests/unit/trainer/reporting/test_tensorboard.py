"""What TensorBoard reads back from the event files."""

import numpy as np
import pytest
from PIL import Image

from trainer.reporting.tensorboard import TensorBoardRecorder, layout
from trainer.scoring.matching_curve import THRESHOLDS, MatchingCurve


def shown_by_tensorboard(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory))
    accumulator.Reload()
    return accumulator


def test_tensorboard_forgets_the_rolled_back_tail_and_keeps_the_recipe(tmp_path):
    before = TensorBoardRecorder(tmp_path)
    before.text("recipe", "optim:\n  lr: 1.0e-4")
    for step in range(1, 6):
        before.record(step, {"train/loss": float(step), "val/accuracy": 0.5})
    before.close()
    after = TensorBoardRecorder(tmp_path, resumed_step=3)
    after.record(4, {"train/loss": 40.0})
    after.close()
    shown = shown_by_tensorboard(tmp_path)
    assert [(event.step, event.value) for event in shown.Scalars("train/loss")] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert [event.step for event in shown.Scalars("val/accuracy")] == [1, 2, 3]
    [recipe] = shown.Tensors("recipe/text_summary")
    assert recipe.tensor_proto.string_val[0].decode() == "    optim:\n      lr: 1.0e-4"


def test_tensorboard_forgets_all_of_a_run_that_starts_anew_in_the_same_directory(tmp_path):
    for steps in (range(9), range(2)):
        recorder = TensorBoardRecorder(tmp_path)
        for step in steps:
            recorder.record(step, {"train/loss": 1.0})
        recorder.close()
    assert [event.step for event in shown_by_tensorboard(tmp_path).Scalars("train/loss")] == [0, 1]


def words(shown, name: str) -> list[tuple[int, str]]:
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in shown.Tensors(f"{name}/text_summary")]


def test_a_curve_that_stays_flat_is_a_text_and_one_that_moves_is_whole(tmp_path):
    recorder = TensorBoardRecorder(tmp_path)
    for step, rate in enumerate((1.0, 1.0, 1.0, 2.0, 2.0), start=1):
        recorder.record(step, {"optim/lr": rate, "optim/loss_scale": 1.0, "val/accuracy": 0.5})
    recorder.close()
    shown = shown_by_tensorboard(tmp_path)
    assert [(event.step, event.value) for event in shown.Scalars("optim/lr")] == [(1, 1), (3, 1), (4, 2), (5, 2)]
    assert [event.step for event in shown.Scalars("val/accuracy")] == [1, 2, 3, 4, 5], "learning nothing is news"
    assert "optim/loss_scale" not in shown.Tags()["scalars"]
    assert words(shown, "optim/loss_scale") == [(5, "1")]


def test_a_curve_whose_second_value_is_another_one_begins_with_the_first(tmp_path):
    recorder = TensorBoardRecorder(tmp_path)
    for step, value in ((1, 0.25), (2, 0.5)):
        recorder.record(step, {"progress/epoch": value, "optim/grad_norm": float("nan")})
    recorder.close()
    shown = shown_by_tensorboard(tmp_path)
    assert [(event.step, event.value) for event in shown.Scalars("progress/epoch")] == [(1, 0.25), (2, 0.5)]
    assert words(shown, "optim/grad_norm") == [(2, "nan")]


def test_counts_are_texts_that_stand_until_they_change(tmp_path):
    recorder = TensorBoardRecorder(tmp_path)
    for step, count in ((1, 12_578), (2, 12_578), (3, 9)):
        recorder.record(step, {"val/count": count, "val/binary/count": 1})
    recorder.close()
    shown = shown_by_tensorboard(tmp_path)
    assert not [name for name in shown.Tags()["scalars"] if name.endswith("count")]
    assert words(shown, "val/count") == [(1, "12,578"), (3, "9")]


def test_runs_stand_in_a_table_with_what_they_set_and_their_best_metrics(tmp_path):
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    recorder = TensorBoardRecorder(tmp_path)
    recorder.introduce({"optim.lr": 1e-3, "task": "vqa"}, ["val/accuracy"])
    recorder.best(10, {"val/accuracy": 0.5, "val/loss": 2.0})
    recorder.best(20, {"val/accuracy": 0.75, "val/loss": 1.0})
    recorder.close()
    shown = shown_by_tensorboard(tmp_path)
    assert [(event.step, event.value) for event in shown.Scalars("best/accuracy")] == [(10, 0.5), (20, 0.75)]
    content = shown.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    assert {info.name for info in experiment.hparam_infos} == {"optim.lr", "task"}
    assert [info.name.tag for info in experiment.metric_infos] == ["best/accuracy"]


def test_the_groups_of_curves_are_kept_and_name_curves_by_expressions(tmp_path):
    recorder = TensorBoardRecorder(tmp_path)
    recorder.introduce({}, ["val/accuracy"])
    recorder.close()
    assert "custom_scalars__config__" in shown_by_tensorboard(tmp_path).Tags()["tensors"]
    groups = layout(["val/accuracy"])
    assert [name[2:] for name in groups] == ["Is it learning?", "Is it fast?", "When is it done?"]
    assert groups["1 Is it learning?"]["what is right"] == ["Multiline", ["val/accuracy$"]]


def test_pictures_and_curves_of_matching_come_back(tmp_path):
    curve = MatchingCurve()
    curve.add([0.9, 0.2, 0.6], [1, 0, 0])
    recorder = TensorBoardRecorder(tmp_path)
    recorder.picture(3, "val/confusion", Image.new("RGB", (4, 2), "red"))
    recorder.precision_recall(3, "val/itm", curve.precision_recall())
    recorder.close()
    shown = shown_by_tensorboard(tmp_path)
    (image,) = shown.Images("val/confusion")
    assert (image.step, image.width, image.height) == (3, 4, 2)
    (event,) = shown.Tensors("val/itm")
    from tensorboard.util.tensor_util import make_ndarray

    values = make_ndarray(event.tensor_proto)
    assert values.shape == (6, THRESHOLDS)
    assert values[:, 0] == pytest.approx([1, 2, 0, 0, 1 / 3, 1])
    assert np.all(values[:, -1] == [0, 0, 2, 1, 0, 0])
