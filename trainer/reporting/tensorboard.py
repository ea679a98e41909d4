"""TensorBoard: curves in the groups that answer a question each, runs as a table, pictures, and no line that is flat.

Its page Custom Scalars asks: is it learning, is it fast, when is it done? Its page HParams has a row for each run of a
directory, with what the recipe sets and the metrics of the best validation.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.reporting.recorders import Recorder, Scalar
from trainer.scoring.matching_curve import THRESHOLDS, PrecisionRecall

BEST = "best/"
"""In front of the metrics of the best validation."""
OFTEN_FLAT = ("optim/", "progress/", "memory/")
"""What stays as it is in many runs: such a curve begins with its second value."""
RECIPE = "recipe"


class TensorBoardRecorder(Recorder):
    """Scalars, texts, pictures and curves in TensorBoard's event files.

    Args:
        directory: where the event files lie; a resumed run adds one to those of before.
        resumed_step: TensorBoard is told to forget everything after this step; None forgets everything there is.
    """

    def __init__(self, directory: Path | str, *, resumed_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import, and only rank 0 needs it

        purge_step = 0 if resumed_step is None else resumed_step + 1
        self._writer = SummaryWriter(str(directory), purge_step=purge_step)
        self._words: dict[str, str] = {}
        self._flat: dict[str, list[tuple[int, float]]] = {}
        """Of curves that are flat so far, the first point and the last."""
        self._risen: set[str] = set()

    def introduce(self, settings: Mapping[str, Scalar], accuracies: Sequence[str]) -> None:
        """The groups of the curves, and the row of the run among others."""
        from torch.utils.tensorboard.summary import hparams

        self._writer.add_custom_scalars(layout(accuracies))
        names = {f"{BEST}{name.removeprefix('val/')}": 0.0 for name in accuracies}
        start, session, _ = hparams(dict(settings), names)
        for summary in (start, session):
            self._writer.file_writer.add_summary(summary)

    def record(self, step: int, values: Mapping[str, float | str]) -> None:
        """Numbers as curves; words, and how many items are behind a number, as texts that stand until they change."""
        for name, value in values.items():
            if isinstance(value, str):
                self._word(name, value, step)
            elif name.rpartition("/")[2] == "count":
                self._word(name, f"{value:,.0f}", step)
            elif name.startswith(OFTEN_FLAT) and name not in self._risen:
                self._hold(name, value, step)
            else:
                self._writer.add_scalar(name, value, step)

    def best(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"{BEST}{name.removeprefix('val/')}", value, step)

    def text(self, name: str, text: str) -> None:
        """Show the text as it is written: TensorBoard would read it as Markdown, which an indented block escapes."""
        self._writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()), 0)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def precision_recall(self, step: int, name: str, curve: PrecisionRecall) -> None:
        self._writer.add_pr_curve_raw(name, *curve, curve.precision, curve.recall, step, num_thresholds=THRESHOLDS)

    def close(self) -> None:
        """Finish writing; what has stayed the same is a text."""
        for name, points in self._flat.items():
            self._word(name, f"{points[0][1]:.6g}", points[-1][0])
        self._writer.close()

    def _word(self, name: str, word: str, step: int) -> None:
        if self._words.get(name) != word:
            self._words[name] = word
            self._writer.add_text(name, word, step)

    def _hold(self, name: str, value: float, step: int) -> None:
        """Keep a curve back while it is flat."""
        points = self._flat.setdefault(name, [(step, value)])
        if value == points[0][1] or (value != value and points[0][1] != points[0][1]):
            self._flat[name] = [points[0], (step, value)]
            return
        for at, before in [*dict.fromkeys(points), (step, value)]:
            self._writer.add_scalar(name, before, at)
        self._risen.add(name)
        del self._flat[name]


def layout(accuracies: Sequence[str]) -> dict[str, dict[str, list]]:
    """Group -> chart -> the curves in it, as regular expressions of their names."""

    def chart(*names: str) -> list:
        return ["Multiline", list(names)]

    learning = {
        "loss": chart("train/loss$", "val/loss$"),
        "what is right": chart(*(f"{name}$" for name in accuracies)),
        "parts of the loss": chart("train/[a-z]+_loss$"),
        "by type": chart("val/(structural|semantic)/[a-z]+$", "val/(yes_no|number|other)$", "val/(binary|open)$"),
    }
    fast = {
        "questions per second": chart("speed/questions_per_second$"),
        "where the time goes": chart("speed/(compute|data|network|host)_share$"),
        "memory (GiB)": chart("memory/gib$"),
    }
    done = {
        "seconds left": chart("speed/left_seconds$"),
        "epoch": chart("progress/epoch$"),
        "learning rate": chart("optim/lr$"),
    }
    return {"1 Is it learning?": learning, "2 Is it fast?": fast, "3 When is it done?": done}
