"""Measures training steps of the grouped path and of those it is compared with: gradients first, then time."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from model.fusion_objective import FusionObjective
from trainer.bench.paths import GROUPED, IMAGE_PER_QUESTION, IMAGES_ONCE, KEYS_PER_ROW, PLAIN, Losses, paths
from trainer.bench.reference import plain_image_tokens
from trainer.bench.rounds import Seconds, speedup, time_rounds
from trainer.bench.workload import ANSWER_TOKENS, GQA_QUESTION_TOKENS, Sizes, Workload, build_workload

LARGEST_DIFFERENCE = 1e-5
"""Relative difference of gradients in fp32, above which a path computes something else."""

_LEARNING_RATE = 1e-5
_WARM_UP_STEPS = 2


LARGEST_EXACT_DIFFERENCE = 1e-9
"""The same in fp64, from the pixels on; the losses themselves are computed in fp32 there too."""

_EXACT_IMAGES, _EXACT_QUESTIONS = 2, 2
"""Images, and questions of each, that are compared in fp64: enough to mix up, and little to wait for."""


class Encoders(NamedTuple):
    """How far the grouped path's image encoder is from the plain one, and what that does to the gradients in fp64.

    On a CPU the tokens are the same bits. A GPU rounds by the kernels that it chooses for a batch's size, and has fused
    attention besides; in fp32 some of the million units of DIFNet's ReLU stand so close to 0 that they switch, each a
    jump of the gradient, so there all paths are compared from the same tokens on, and in fp64 from the pixels on.
    """

    tokens: float
    """||tokens - plain tokens|| / ||plain tokens|| in fp32"""
    exact: float
    """The grouped path's gradients from the pixels on, as `Measurement.differences` but in fp64, over a few
    questions."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured of the paths, by name."""

    rounds: list[Seconds]
    losses: dict[str, float]
    """Loss of a step from the first weights, in fp32."""
    differences: dict[str, float]
    """||gradient - plain gradient|| / ||plain gradient|| in fp32, on a CPU from the pixels on, on a GPU from the plain
    path's image tokens; empty without the reference."""
    encoders: Encoders | None
    """None without the reference."""
    num_questions: int
    circumstances: dict[str, Any]
    """Sizes, device, versions: what the numbers depend on."""

    @property
    def unequal(self) -> list[str]:
        """What is not as in the plain path: gradients of paths, the image tokens, or gradients in fp64."""
        unequal = [name for name, difference in self.differences.items() if not difference <= LARGEST_DIFFERENCE]
        if self.encoders is not None:
            unequal += ["image tokens"] * (not self.encoders.tokens <= LARGEST_DIFFERENCE)
            unequal += [f"{GROUPED} in fp64"] * (not self.encoders.exact <= LARGEST_EXACT_DIFFERENCE)
        return unequal

    def milliseconds(self, name: str) -> float:
        """Median over rounds."""
        return 1000 * median(seconds[name] for seconds in self.rounds)

    def questions_per_second(self, name: str) -> float:
        """Median over rounds."""
        return median(self.num_questions / seconds[name] for seconds in self.rounds)

    def as_json(self) -> dict[str, Any]:
        """Everything, with the medians; the ratios are medians over rounds of questions per second to plain's."""
        names = list(self.losses)
        result = {"benchmark": "step", **self.circumstances, "questions": self.num_questions}
        result["paths"] = {
            name: {
                "milliseconds": self.milliseconds(name),
                "questions_per_second": self.questions_per_second(name),
                "milliseconds_by_round": [1000 * seconds[name] for seconds in self.rounds],
                "loss": _finite(self.losses[name]),
                "gradient_difference": _finite(self.differences.get(name)),
            }
            for name in names
        }
        if PLAIN in names:
            result["ratio"] = speedup(self.rounds, GROUPED, PLAIN)
            result["ratio_without_shared_keys_values"] = speedup(self.rounds, KEYS_PER_ROW, PLAIN)
            result["ratio_with_image_deduplication_only"] = speedup(self.rounds, IMAGES_ONCE, PLAIN)
            result["ratio_to_one_fused_image_per_question"] = speedup(self.rounds, GROUPED, IMAGE_PER_QUESTION)
            result["gradient_difference"] = _finite(self.differences[GROUPED])
            result["gradients_equal"] = not self.unequal
            result["encoders"] = {name: _finite(value) for name, value in self.encoders._asdict().items()}
        return result


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None


def measure(
    sizes: Sizes,
    *,
    images: int,
    questions_per_image: int,
    with_reference: bool,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    seconds_at_least: float = 0.5,
    seed: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> Measurement:
    """Compare the gradients in fp32, then time forward, backward and AdamW in `dtype`.

    Args:
        dtype: of parameters and activations while timing; AdamW has fp32 copies of the parameters.
        seconds_at_least: steps shorter than this are repeated within a round.
        progress: told what is being measured: on a CPU, the plain path takes most of a minute each time.
    """
    workload = build_workload(sizes, images=images, questions_per_image=questions_per_image, seed=seed)
    workload = _place(workload, device, torch.float32)
    contenders = paths(workload, with_reference=with_reference)
    with _exact_convolutions():
        losses, differences = _compare_gradients(workload, contenders, progress)
        encoders = _compare_encoders(workload, sizes, seed, progress) if with_reference else None
    _place(workload, device, dtype)
    steps = _training_steps(workload.objective, contenders, _synchronise(device))
    # The gradients have warmed the paths up, in their dtype; AdamW has not made its moments yet.
    for name in [GROUPED] if dtype == torch.float32 else list(steps) * _WARM_UP_STEPS:
        steps[name]()
    return Measurement(
        rounds=time_rounds(steps, rounds=rounds, seconds_at_least=seconds_at_least, progress=progress),
        losses=losses,
        differences=differences,
        encoders=encoders,
        num_questions=workload.num_questions,
        circumstances={
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "dtype": str(dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "images": images,
            "questions_per_image": questions_per_image,
            "sizes": asdict(sizes),
            "question_tokens": dict(GQA_QUESTION_TOKENS),
            "answer_tokens": dict(ANSWER_TOKENS),
            "rounds": rounds,
        },
    )


def _place(workload: Workload, device: torch.device, dtype: torch.dtype) -> Workload:
    workload.objective.to(device=device, dtype=dtype)
    workload.objective.place_frozen(device, dtype)
    return Workload(workload.objective, workload.batch.to(device))


def _compare_gradients(
    workload: Workload, contenders: Mapping[str, Losses], progress: Callable[[str], None]
) -> tuple[dict[str, float], dict[str, float]]:
    """Loss of every path, and how far its gradients are from those of the plain path."""
    objective, batch = workload
    if PLAIN not in contenders:
        return {name: _gradients(objective, path)[0] for name, path in contenders.items()}, {}
    losses, differences = {}, {}
    reference: list[Tensor] | None = None
    given = _given_tokens(objective, batch.shown) if batch.shown.is_cuda else contextlib.nullcontext()
    with given:
        for name in sorted(contenders, key=lambda name: name != PLAIN):
            progress(f"gradients: {name}")
            losses[name], found = _gradients(objective, contenders[name])
            reference = found if reference is None else reference
            differences[name] = relative_difference(found, reference)
    return {name: losses[name] for name in contenders}, differences


def _compare_encoders(workload: Workload, sizes: Sizes, seed: int, progress: Callable[[str], None]) -> Encoders:
    progress("gradients: in fp64")
    objective, pixels = workload.objective, workload.batch.shown
    tokens = relative_difference([objective.image_tokens(pixels)], [plain_image_tokens(objective, pixels)])
    few = build_workload(sizes, images=_EXACT_IMAGES, questions_per_image=_EXACT_QUESTIONS, seed=seed)
    few = _place(few, pixels.device, torch.float64)
    contenders = paths(few, with_reference=True)
    found, expected = (_gradients(few.objective, contenders[name])[1] for name in (GROUPED, PLAIN))
    return Encoders(tokens, relative_difference(found, expected))


def _gradients(objective: nn.Module, path: Losses) -> tuple[float, list[Tensor]]:
    """A path's loss, and its gradients of all parameters, which are left without."""
    objective.zero_grad(set_to_none=True)
    loss = _backward(path).item()
    gradients = [parameter.grad for parameter in objective.parameters()]
    objective.zero_grad(set_to_none=True)
    return loss, gradients


@contextlib.contextmanager
def _given_tokens(objective: FusionObjective, pixels: Tensor) -> Iterator[None]:
    """The objective takes the plain path's tokens of these pixels for its vision tower's."""
    tokens = plain_image_tokens(objective, pixels)
    objective.image_tokens = lambda _: tokens
    try:
        yield
    finally:
        del objective.image_tokens  # the method is there again


def relative_difference(gradients: list[Tensor], reference: list[Tensor]) -> float:
    """||gradients - reference|| / ||reference||, over all tensors together; NaN if anything is not finite."""
    apart = whole = 0.0
    for found, expected in zip(gradients, reference, strict=True):
        apart += float((found - expected).double().square().sum())
        whole += float(expected.double().square().sum())
    assert whole != 0, "the reference is zero: nothing was compared"
    return math.sqrt(apart / whole)


def _backward(path: Losses) -> Tensor:
    """Add the gradients of a step to the parameters; returns its loss, detached."""
    total = torch.zeros(())
    for loss in path():
        loss.backward()
        total = total.to(loss.device) + loss.detach()
    return total


def _training_steps(
    objective: nn.Module, contenders: Mapping[str, Losses], synchronise: Callable[[], None]
) -> dict[str, Callable[[], None]]:
    optimizer = _MasterAdamW(objective)

    def step(path: Losses) -> None:
        _backward(path)
        optimizer.step()
        synchronise()

    return {name: lambda path=path: step(path) for name, path in contenders.items()}


class _MasterAdamW:
    """AdamW on fp32 copies of the parameters, as mixed precision training has it."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters = list(module.parameters())
        self._master = [parameter.detach().float().clone() for parameter in self._parameters]
        self._adamw = torch.optim.AdamW(self._master, lr=_LEARNING_RATE)

    @torch.no_grad()
    def step(self) -> None:
        """Take the gradients and update the parameters."""
        for master, parameter in zip(self._master, self._parameters, strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
        self._adamw.step()
        torch._foreach_copy_(self._parameters, self._master)


def _synchronise(device: torch.device) -> Callable[[], None]:
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None


@contextlib.contextmanager
def _exact_convolutions() -> Iterator[None]:
    """torch lets cuDNN round the inputs of fp32 convolutions to TF32, which is off by default everywhere else."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
