"""Measures training steps of the grouped path and of those it is compared with, each in a process of its own."""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from shards.errors import UserError
from trainer.bench.machine import circumstances
from trainer.bench.paths import CACHED, GROUPED, IMAGE_PER_QUESTION, IMAGES_ONCE, KEYS_PER_ROW, PLAIN
from trainer.bench.rounds import Seconds, speedup
from trainer.bench.step_path import (
    Encoders,
    Request,
    Timed,
    compare_encoders,
    difference_of_files,
    time_path,
)
from trainer.bench.workload import ANSWER_TOKENS, GQA_QUESTION_TOKENS, Sizes

LARGEST_DIFFERENCE = 1e-5
"""Relative difference of gradients, or of losses, in fp32, above which a path computes something else."""
LARGEST_ROUNDED_LOSS, LARGEST_ROUNDED_DIFFERENCE = 1e-3, 5e-2
"""The same of a loss over tokens that were rounded to fp16, and of its gradients."""
LARGEST_EXACT_DIFFERENCE = 1e-9
"""The same in fp64, from the pixels on; the losses themselves are computed in fp32 there too."""

KEPT_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
}
"""The C library keeps what a step has freed for the next one. Paths that free gigabytes would otherwise be timed asking
for fresh pages, which on a virtual machine are dear: each is zeroed, and mapped by the host as well."""

DEFAULTS = "_malloc_defaults"
"""Behind the name of a path: computed with the C library's own settings for memory, which ranks have."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured of the paths, by name."""

    rounds: list[dict[str, Timed]]
    differences: dict[str, float]
    """||gradient - plain gradient|| / ||plain gradient|| in fp32, on a CPU from the pixels on, on a GPU from the plain
    path's image tokens; empty without the reference."""
    encoders: Encoders | None
    """None without the reference."""
    num_questions: int
    circumstances: dict[str, Any]
    """Sizes, device, versions: what the numbers depend on."""

    @property
    def names(self) -> list[str]:
        """Of the paths, in the order of a table."""
        return list(self.rounds[0])

    @property
    def losses(self) -> dict[str, float]:
        """Of a step from the first weights, in fp32: those of the first round."""
        return {name: timed.loss for name, timed in self.rounds[0].items()}

    @property
    def seconds(self) -> list[Seconds]:
        """Of a step, by round and path."""
        return [{name: timed.seconds for name, timed in timings.items()} for timings in self.rounds]

    @property
    def unequal(self) -> list[str]:
        """What is not as in the plain path, or as in the grouped one where that is not measured: losses, gradients of
        paths, the image tokens, or gradients in fp64."""
        first = self.losses[PLAIN if PLAIN in self.losses else GROUPED]
        unequal = [
            f"{name} (loss)"
            for name in self.names
            if any(not _near(timings[name].loss, first, is_rounded(name)) for timings in self.rounds)
        ]
        unequal += [
            name
            for name, difference in self.differences.items()
            if not difference <= (LARGEST_ROUNDED_DIFFERENCE if is_rounded(name) else LARGEST_DIFFERENCE)
        ]
        if self.encoders is not None:
            unequal += ["image tokens"] * (not self.encoders.tokens <= LARGEST_DIFFERENCE)
            unequal += [f"{GROUPED} in fp64"] * (not self.encoders.exact <= LARGEST_EXACT_DIFFERENCE)
        return unequal

    def milliseconds(self, name: str) -> float:
        """Median over rounds."""
        return 1000 * median(timings[name].seconds for timings in self.rounds)

    def spread(self, name: str) -> float:
        """Slowest less fastest round, as a part of the median."""
        seconds = [timings[name].seconds for timings in self.rounds]
        return (max(seconds) - min(seconds)) / median(seconds)

    def questions_per_second(self, name: str) -> float:
        """Median over rounds."""
        return median(self.num_questions / timings[name].seconds for timings in self.rounds)

    def times(self, fast: str, slow: str) -> float:
        """How many times as fast one path is as another: the median over rounds of their ratio in each."""
        return speedup(self.seconds, fast, slow)

    def as_json(self) -> dict[str, Any]:
        """Everything, with the medians; the ratios are medians over rounds of questions per second to plain's."""
        names = self.names
        result = {"benchmark": "step", **self.circumstances, "questions": self.num_questions}
        result["losses_equal"] = not self.unequal
        result["paths"] = {
            name: {
                "milliseconds": self.milliseconds(name),
                "questions_per_second": self.questions_per_second(name),
                "spread": self.spread(name),
                "milliseconds_by_round": [1000 * timings[name].seconds for timings in self.rounds],
                "rounds": [asdict(timings[name]) for timings in self.rounds],
                "loss": _finite(self.losses[name]),
                "gradient_difference": _finite(self.differences.get(name)),
            }
            for name in names
        }
        pairs = {
            "ratio": (GROUPED, PLAIN),
            "ratio_cached": (CACHED, PLAIN),
            "ratio_without_shared_keys_values": (KEYS_PER_ROW, PLAIN),
            "ratio_with_image_deduplication_only": (IMAGES_ONCE, PLAIN),
            "ratio_to_one_fused_image_per_question": (GROUPED, IMAGE_PER_QUESTION),
            "ratio_with_malloc_defaults": (GROUPED + DEFAULTS, PLAIN + DEFAULTS),
            "ratio_of_cached_to_grouped": (CACHED, GROUPED),
        }
        result |= {key: self.times(*pair) for key, pair in pairs.items() if {*pair} <= {*names}}
        if PLAIN in names:
            result["gradient_difference"] = _finite(self.differences[GROUPED])
            result["gradients_equal"] = not self.unequal
        if self.encoders is not None:
            result["encoders"] = {name: _finite(value) for name, value in asdict(self.encoders).items()}
        return result


@dataclass(frozen=True, kw_only=True)
class Processes:
    """How one path is computed: in a process of its own, with an environment of its own."""

    def time(self, request: Request, environment: Mapping[str, str]) -> Timed:
        """What a path took."""
        return Timed(**self._answer(request, environment))

    def compare(self, request: Request, environment: Mapping[str, str]) -> Encoders:
        """How far the image encoders are apart."""
        return Encoders(**self._answer(replace(request, path="encoders"), environment))

    @staticmethod
    def _answer(request: Request, environment: Mapping[str, str]) -> dict[str, Any]:
        command = [sys.executable, "-m", "trainer.bench.step_path", json.dumps(asdict(request))]
        done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"bench step: path {request.path} ended with {done.returncode}: {said}")
        return json.loads(done.stdout)


@dataclass(frozen=True, kw_only=True)
class InThisProcess:
    """The same without one: what is measured beside each other shares an allocator. For tests."""

    def time(self, request: Request, _: Mapping[str, str]) -> Timed:
        """See `Processes`."""
        return time_path(request)

    def compare(self, request: Request, _: Mapping[str, str]) -> Encoders:
        """See `Processes`."""
        return compare_encoders(request)


def measure(
    sizes: Sizes,
    *,
    questions: Sequence[int],
    names: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    seconds_at_least: float = 0.5,
    seed: int = 1,
    computed: Processes | InThisProcess | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Measurement:
    """Time forward, backward and AdamW of paths in alternating rounds, each beginning with another one.

    Args:
        questions: of each image.
        names: of the paths, in the order of a table; with the plain one, gradients are compared in fp32 as well.
        dtype: of parameters and activations while timing; AdamW has fp32 copies of the parameters.
        seconds_at_least: steps shorter than this are repeated within a round.
        progress: told what is being measured: on a CPU, the plain path takes most of two minutes each time.

    Raises:
        UserError: a path cannot be computed here.
    """
    computed = computed or Processes()
    request = Request(
        path="",
        sizes=sizes,
        questions=tuple(questions),
        seed=seed,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        seconds_at_least=seconds_at_least,
    )
    timings: list[dict[str, Timed]] = []
    with tempfile.TemporaryDirectory(prefix="gradients.") as aside:
        for number in range(rounds):
            start = number % len(names)
            found = {}
            for name in [*names[start:], *names[:start]]:
                file = str(Path(aside) / name) if number == 0 and PLAIN in names else None
                own = replace(request, path=name.removesuffix(DEFAULTS), gradients=file)
                found[name] = computed.time(own, _environment(name, device))
                progress(f"round {number + 1} of {rounds}: {name} {found[name].seconds:.3g} s")
            timings.append({name: found[name] for name in names})
        differences = {}
        if PLAIN in names:
            compared = [name for name in names if not name.endswith(DEFAULTS)]
            differences = {name: difference_of_files(Path(aside) / name, Path(aside) / PLAIN) for name in compared}
            progress("gradients: in fp64")
    encoders = computed.compare(request, _environment(GROUPED, device)) if PLAIN in names else None
    return Measurement(
        rounds=timings,
        differences=differences,
        encoders=encoders,
        num_questions=sum(questions),
        circumstances={
            **circumstances(device),
            "dtype": request.dtype,
            "images": len(questions),
            "questions_per_image": list(questions),
            "sizes": asdict(sizes),
            "question_tokens": dict(GQA_QUESTION_TOKENS),
            "answer_tokens": dict(ANSWER_TOKENS),
            "rounds": rounds,
            "allocator": dict(KEPT_MEMORY) if device.type == "cpu" else {},
        },
    )


def path_names(device: torch.device, *, reference: bool, cached: bool, density: bool) -> list[str]:
    """The paths that are measured, in the order of a table.

    Args:
        density: with the reference, the plain path alone is compared with.
    """
    if not reference:
        return [GROUPED, *([CACHED] if cached else [])]
    if density:
        return [GROUPED, CACHED, PLAIN]
    defaults = [GROUPED + DEFAULTS, PLAIN + DEFAULTS] if device.type == "cpu" else []
    return [GROUPED, CACHED, KEYS_PER_ROW, IMAGES_ONCE, IMAGE_PER_QUESTION, PLAIN, *defaults]


def is_rounded(name: str) -> bool:
    """Whether a path reads tokens that were rounded."""
    return name.removesuffix(DEFAULTS) == CACHED


def _environment(name: str, device: torch.device) -> dict[str, str]:
    """This process's own, on a CPU with KEPT_MEMORY but for a path with the defaults; what the user has set stands."""
    if device.type != "cpu" or name.endswith(DEFAULTS):
        return dict(os.environ)
    return {**KEPT_MEMORY, **os.environ}


def _near(loss: float, expected: float, rounded: bool) -> bool:
    allowed = LARGEST_ROUNDED_LOSS if rounded else LARGEST_DIFFERENCE
    return abs(loss - expected) <= allowed * abs(expected)


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None
