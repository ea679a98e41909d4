"""`duoflow bench answer`: what each stage of answering costs, for questions of an image together and one by one."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.atomic import check_writable
from shards.errors import UserError
from shards.progress import say
from trainer.bench.device import bench_device

if TYPE_CHECKING:
    from trainer.bench.measure_answer import AnswerMeasurement

QUESTIONS = 4
ROUNDS = 3


def add_parser(subparsers: Any) -> None:
    """Add `bench answer`; its namespace carries `handler`: namespace -> exit code."""
    parser = subparsers.add_parser(
        "answer",
        help="milliseconds per question of each stage of answering",
        description="Time the stages of both ways to an answer, for questions about one image together and for each "
        "alone with the image encoded every time. Random weights of official sizes: BLIP-base at 384 pixels, a DIFNet "
        "fusion, EfficientSAM's tiny variant, 100 captions per question, T5-base; fp32 on a CPU, where it takes "
        "minutes, fp16 on CUDA.",
        epilog="duoflow bench answer --rounds 1",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="what computes (default: cuda where there is one)")
    parser.add_argument(
        "--questions", metavar="K", type=int, default=QUESTIONS, help="about the image (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", metavar="N", type=int, default=ROUNDS, help="medians are taken over so many (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="F", type=Path, help="write the figures to this file as well")
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    for name in ("questions", "rounds"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: expected at least 1")

    if arguments.json is not None:
        check_writable("--json", arguments.json)

    import torch

    from trainer.bench.answer_workload import AnswerSizes
    from trainer.bench.measure_answer import measure_answer
    from trainer.run_directory import write_json

    device = bench_device(arguments.device)
    measured = measure_answer(
        AnswerSizes(),
        questions=arguments.questions,
        device=device,
        dtype=torch.float16 if device.type == "cuda" else torch.float32,
        rounds=arguments.rounds,
        report=lambda line: say(line, error=True),
    )
    say(table(measured))
    if arguments.json is not None:
        write_json(arguments.json, measured.as_json())
    if measured.agreement.unequal:
        say(f"duoflow: {_complaint(measured)}", error=True)
        return 1
    return 0


def _complaint(measured: "AnswerMeasurement") -> str:
    from trainer.bench.measure_answer import LARGEST_DIFFERENCE

    return (
        f"the {', '.join(measured.agreement.unequal)} of questions together differ from those of each alone (allowed: "
        f"{LARGEST_DIFFERENCE:g}, and the same points): the times above compare different computations"
    )


def table(measured: "AnswerMeasurement") -> str:
    """The figures for a person: a line per stage, and one per way to an answer."""
    from trainer.bench.measure_answer import GROUPED, UNGROUPED
    from trainer.bench.stages import PIPELINES, STAGES

    def line(name: str, stages: Sequence[str], what: str) -> str:
        grouped, alone = (measured.milliseconds(stages, mode) for mode in (GROUPED, UNGROUPED))
        return f"{name:<18}{grouped:>12,.1f}{alone:>12,.1f}{measured.ratio(stages):>8.2f}x  {what}"

    lines = [
        *_about(measured),
        "",
        f"{'ms per question':<18}{'together':>12}{'each alone':>12}{'ratio':>9}",
        *(line(name, [name], stage.what) for name, stage in STAGES.items()),
        "",
        *(line(name, pipeline.stages, pipeline.what) for name, pipeline in PIPELINES.items()),
        "",
        _agreement(measured),
    ]
    return "\n".join(lines)


def _about(measured: "AnswerMeasurement") -> list[str]:
    about = measured.circumstances
    blip, pnp, reader = about["sizes"]["model"]["scratch"], about["sizes"]["pnp"], about["sizes"]["reader"]
    captions = pnp["captions"]
    return [
        f"answering {measured.num_questions} questions about one image: BLIP {blip['vision_layers']} layers, width "
        f"{blip['width']}, {blip['image_size']} pixels; T5 {reader['layers']} layers, width {reader['width']}",
        f"{captions['num_captions']} captions of {captions['num_patches']} patches per question, "
        f"{pnp['captions_per_context']} to a context of {about['tokens_per_context']:.0f} tokens; answers of "
        f"{about['answer_tokens']} tokens",
        f"{about['device']}, {about['dtype']}, {about['threads']} threads, torch {about['torch']}; "
        f"medians of {about['rounds']} rounds",
    ]


def _agreement(measured: "AnswerMeasurement") -> str:
    agreement = measured.agreement
    return (
        f"together against alone, fp32: heatmaps differ by {agreement.heatmap_difference:.1e}, probabilities of direct "
        f"answers by {agreement.probability_difference:.1e} (relative); "
        + ("the points are the same" if agreement.points_equal else "the points differ")
    )
