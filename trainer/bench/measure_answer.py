"""Measures the stages of answering, K questions at a time against each alone: first whether both find the same."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from model.pnp.captions import Captioner
from model.precision import t5_dtype
from trainer.bench.answer_workload import MOST_ANSWER_TOKENS, AnswerSizes, Models, build_models, draw_questions
from trainer.bench.machine import circumstances
from trainer.bench.rounds import Seconds, speedup, time_rounds
from trainer.bench.stages import PIPELINES, STAGES, Asked
from trainer.bench.step_path import relative_difference
from trainer.bench.workload import GQA_QUESTION_TOKENS

LARGEST_DIFFERENCE = 1e-4
"""Relative difference of a question's heatmap or probability in fp32, above which grouping changes what is found."""

GROUPED, UNGROUPED = MODES = "grouped", "ungrouped"

Parts = Mapping[str, Sequence[Asked]]
"""By mode, the questions that pass the stages together: for each of these parts an image is encoded."""

StageSeconds = dict[str, Seconds]
"""By stage, seconds of all questions in each mode."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far what is found for questions in a group is from what is found for each alone, in fp32."""

    heatmap_difference: float
    """||grouped - ungrouped|| / ||ungrouped||, the largest of all questions."""
    probability_difference: float
    """The same of the direct answers' probabilities."""
    points_equal: bool
    """Whether the points lie in the same cells, in the same order."""

    @property
    def unequal(self) -> list[str]:
        """What is not the same; a difference that is not a number is none that can be allowed."""
        same = {
            "heatmaps": self.heatmap_difference <= LARGEST_DIFFERENCE,
            "points": self.points_equal,
            "probabilities of the direct answers": self.probability_difference <= LARGEST_DIFFERENCE,
        }
        return [name for name, equal in same.items() if not equal]


@dataclass(frozen=True, kw_only=True)
class AnswerMeasurement:
    """What was measured of the stages, by name."""

    rounds: list[StageSeconds]
    agreement: Agreement
    num_questions: int
    circumstances: dict[str, Any]
    """Sizes, device, versions: what the numbers depend on."""

    def milliseconds(self, stages: Sequence[str], mode: str) -> float:
        """Of stages together, per question: the median over rounds."""
        return median(self._milliseconds_by_round(stages, mode))

    def ratio(self, stages: Sequence[str]) -> float:
        """How many times longer the stages take for questions alone: the median over rounds of the ratio in each."""
        return speedup([_together(times, stages) for times in self.rounds], GROUPED, UNGROUPED)

    def as_json(self) -> dict[str, Any]:
        """Everything; milliseconds are those of a question."""
        agreement = self.agreement
        return {
            "benchmark": "answer",
            **self.circumstances,
            "questions": self.num_questions,
            "stages": {name: self._figures([name]) for name in STAGES},
            "pipelines": {name: self._figures(pipeline.stages) for name, pipeline in PIPELINES.items()},
            "heatmap_difference": _finite(agreement.heatmap_difference),
            "probability_difference": _finite(agreement.probability_difference),
            "points_equal": agreement.points_equal,
            "grouped_equals_ungrouped": not agreement.unequal,
        }

    def _figures(self, stages: Sequence[str]) -> dict[str, Any]:
        figures: dict[str, Any] = {"ratio": self.ratio(stages)}
        for mode in MODES:
            figures[f"{mode}_milliseconds"] = self.milliseconds(stages, mode)
            figures[f"{mode}_milliseconds_by_round"] = self._milliseconds_by_round(stages, mode)
        return figures

    def _milliseconds_by_round(self, stages: Sequence[str], mode: str) -> list[float]:
        return [1000 * _together(times, stages)[mode] / self.num_questions for times in self.rounds]


def _together(times: StageSeconds, stages: Sequence[str]) -> Seconds:
    return {mode: sum(times[stage][mode] for stage in stages) for mode in MODES}


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


@torch.no_grad()
def measure_answer(
    sizes: AnswerSizes,
    *,
    questions: int,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    report: Callable[[str], None],
    seed: int = 1,
) -> AnswerMeasurement:
    """Run every stage in fp32 with few captions and compare what both modes find, then time rounds in `dtype`.

    Args:
        questions: about the one image.
        dtype: of parameters and activations while timing, but for the mask decoder's and T5's.
        report: is told how far the measurement is, a line at a time.
    """
    transformers_logging.set_verbosity_error()
    models = build_models(sizes, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    texts = draw_questions(models.built.source.tokenizer(sizes.model.match), questions, generator)
    side = models.built.image_size
    pixels = torch.randint(256, (1, 3, side, side), dtype=torch.uint8, generator=generator).to(device)

    report(f"warming up: every stage once, with {models.brief_captioner.config.num_captions} captions per question")
    models.place(device, torch.float32)
    brief = ask(models, models.brief_captioner, pixels, texts)
    times = time_stages(brief, MODES, device)
    agreement = compare(brief)
    if dtype != torch.float32:
        models.place(device, dtype)
        times = time_stages(brief, MODES, device)
    report(f"{rounds} rounds take about {_clock(rounds * _estimate(times, models))} at the most")
    whole = ask(models, models.captioner, pixels, texts)
    return AnswerMeasurement(
        rounds=_time_rounds(whole, rounds, device, report),
        agreement=agreement,
        num_questions=questions,
        circumstances={
            **circumstances(device),
            "dtype": str(dtype).removeprefix("torch."),
            "reader_dtype": str(t5_dtype(device)).removeprefix("torch."),
            "rounds": rounds,
            "sizes": sizes.as_json(),
            "question_tokens": dict(GQA_QUESTION_TOKENS),
            "answer_tokens": MOST_ANSWER_TOKENS,
            "captions_per_question": mean(len(captions) for part in whole[GROUPED] for captions in part.captions),
            "tokens_per_context": mean(length for part in whole[GROUPED] for length in part.context_lengths()),
        },
    )


def ask(models: Models, captioner: Captioner, pixels: Tensor, questions: list[str]) -> Parts:
    """The questions about an image, all at once and each alone."""
    parts = {GROUPED: [questions], UNGROUPED: [[question] for question in questions]}
    return {mode: [Asked(models, captioner, pixels, part) for part in parts[mode]] for mode in MODES}


def time_stages(parts: Parts, order: Sequence[str], device: torch.device) -> StageSeconds:
    """Each stage in both modes, one mode right after the other in this order, before the next stage."""
    return {
        name: time_rounds({mode: partial(_pass, name, parts[mode], device) for mode in order}, rounds=1)[0]
        for name in STAGES
    }


def _pass(stage: str, parts: Sequence[Asked], device: torch.device) -> None:
    for part in parts:
        STAGES[stage].run(part)
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def _time_rounds(parts: Parts, rounds: int, device: torch.device, report: Callable[[str], None]) -> list[StageSeconds]:
    """Rounds that begin with one mode and the other by turns."""
    measured = []
    for number in range(rounds):
        measured.append(time_stages(parts, MODES if number % 2 == 0 else MODES[::-1], device))
        seconds = sum(sum(modes.values()) for modes in measured[-1].values())
        left = (rounds - number - 1) * seconds
        report(f"round {number + 1} of {rounds} took {_clock(seconds)}; about {_clock(left)} left")
    return measured


def _estimate(times: StageSeconds, models: Models) -> float:
    """Seconds of a round, from those of one with few captions."""
    more = models.captioner.config.num_captions / models.brief_captioner.config.num_captions
    by_stage = {name: sum(modes.values()) for name, modes in times.items()}
    return sum(seconds * (more if name in ("captions", "reading") else 1) for name, seconds in by_stage.items())


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def compare(parts: Parts) -> Agreement:
    """What the stages up to the points have found in both modes."""
    found = {
        name: [[value for part in parts[mode] for value in getattr(part, name)] for mode in MODES]
        for name in ("heatmaps", "points", "probabilities")
    }
    grouped, alone = ([[(p.row, p.column) for p in points] for points in each] for each in found["points"])
    return Agreement(
        heatmap_difference=_largest_difference(*found["heatmaps"]),
        probability_difference=_largest_difference(*found["probabilities"]),
        points_equal=grouped == alone,
    )


def _largest_difference(grouped: Sequence[Tensor], ungrouped: Sequence[Tensor]) -> float:
    differences = [relative_difference([one], [other]) for one, other in zip(grouped, ungrouped, strict=True)]
    return max(differences, key=lambda difference: (math.isnan(difference), difference))
