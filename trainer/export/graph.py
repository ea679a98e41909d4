"""The fusion encoder as a graph that needs no DuoFlow, for ONNX and for `torch.export`, checked against its module.

Inputs: tokens (B, N, D) of the first vision tower, and map (B, C, h, w) of the second where there is one. Output: fused
(B, N, D'). B is free.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from model.fusion_objective import FusionObjective
from shards.errors import ConfigError, UserError

GraphFormat = Literal["onnx", "torch"]
ONNX, TORCH = "fusion_encoder.onnx", "fusion_encoder.pt2"
FILES: dict[GraphFormat, str] = {"onnx": ONNX, "torch": TORCH}
TOLERANCE = 1e-4
"""Largest difference to the module, as a part of its largest output: what the order of sums may change in fp32."""

_TRACED, _TRIED = 2, (1, 3)
"""Batch sizes."""


class Written(NamedTuple):
    """A graph, and how far its outputs are from the module's."""

    file: str
    difference: float
    """The largest, as a part of the largest output."""


def check_formats(formats: Sequence[GraphFormat]) -> None:
    """Whether what writes and checks these graphs is installed.

    Raises:
        ConfigError: something is missing.
    """
    if "onnx" in formats and (
        missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]
    ):
        raise ConfigError(f"--onnx: {', '.join(missing)} is not installed; pip install 'duoflow[onnx]'")


def write_graph(objective: FusionObjective, size: int, form: GraphFormat, directory: Path) -> Written:
    """Write the fusion encoder of an objective and compare what is read back with the module, at several batch sizes.

    Args:
        objective: on the CPU in fp32, in evaluation mode.
        size: side in pixels of what its towers are shown.

    Raises:
        ConfigError: its fusion is no function of two maps alone, as where a question weighs one of them.
        UserError: it cannot be traced, or the graph gives something else than the module.
    """
    if objective.is_guided:
        raise ConfigError(
            "model.second_stream: efficient_sam_masks weighs a map by the mask of each question, which a graph of the "
            "fusion encoder alone does not know; leave --onnx and --torch-export out"
        )
    module, shapes = objective.fusion.eval(), _shapes(objective, size)
    path = directory / FILES[form]
    try:
        with _quiet():
            run = _WRITERS[form](module, _inputs(shapes, _TRACED), path)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, torch.onnx.errors.OnnxExporterError) as error:
        raise UserError(f"{FILES[form]}: {form} cannot trace this fusion encoder ({_first_line(error)})") from None
    difference = max(_difference(module, run, _inputs(shapes, size_of_batch)) for size_of_batch in _TRIED)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{FILES[form]}: differs from the fusion encoder by {difference:.1e} of its largest output, at most "
            f"{TOLERANCE:.0e} expected; leave this format out, and tell the versions of torch and {form}"
        )
    return Written(FILES[form], difference)


@torch.no_grad()
def _shapes(objective: FusionObjective, size: int) -> list[tuple[int, ...]]:
    """Of one image's tokens, and of its map."""
    pixels = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    shown = [objective.image_tokens(pixels), objective.feature_map(pixels)]
    return [tuple(found.shape[1:]) for found in shown if found is not None]


def _inputs(shapes: Sequence[tuple[int, ...]], batch: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)
    return tuple(torch.randn(batch, *shape, generator=generator) for shape in shapes)


@torch.no_grad()
def _difference(module: nn.Module, run: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> float:
    expected = module(*_both(inputs))
    return float((run(*inputs) - expected).abs().max() / expected.abs().max())


def _both(inputs: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    return inputs if len(inputs) == 2 else (*inputs, None)


def _write_torch(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> Callable[..., Tensor]:
    torch.export.save(_traced(module, inputs), path)
    loaded = torch.export.load(path).module()
    return lambda *given: loaded(*_both(given))


def _write_onnx(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> Callable[..., Tensor]:
    import onnxruntime

    names = ["tokens", "map"][: len(inputs)]
    program = torch.onnx.export(
        _traced(module, inputs), (), input_names=names, output_names=["fused"], dynamo=True, verbose=False
    )
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*given: Tensor) -> Tensor:
        fed = {name: value.numpy() for name, value in zip(names, given, strict=True)}
        return torch.from_numpy(session.run(None, fed)[0])

    return run


def _traced(module: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple(None if value is None else {0: batch} for value in _both(inputs))
    with torch.no_grad():
        return torch.export.export(module, _both(inputs), dynamic_shapes=shapes)


_WRITERS = {"onnx": _write_onnx, "torch": _write_torch}


@contextmanager
def _quiet():
    """Without the exporter's own lines: what is wrong is said here."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
