"""The `evaluate` verb: a split through the exported weights of a run, on every device of this machine."""

import argparse
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.atomic import check_writable
from shards.progress import say
from trainer.command_line import SPLITS
from trainer.exit_codes import DONE
from trainer.export.run_arguments import add_pipeline_option, check_run
from trainer.run_directory import write_json

if TYPE_CHECKING:
    from trainer.config import RunConfig
    from trainer.inference.evaluate import Evaluated
    from trainer.training.preflight import Machine

_RANK_MODULE = "trainer.inference.rank"


def add_evaluate_parser(verbs: Any) -> None:
    """Add `evaluate`; its namespace carries `handler`: namespace -> exit code."""
    parser = verbs.add_parser(
        "evaluate",
        description="Answer every question of a split with the exported weights of a run, and score the answers. Every "
        "GPU of this machine takes its share, or as many processes as engine.processes=N says.",
        epilog="duoflow evaluate runs/my_run --split val --json scores.json",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's directory, such as runs/NAME, or an export")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="values that the run leaves open, such as data.test=DIR"
    )
    parser.add_argument("--split", required=True, choices=SPLITS, help="which of the recipe's splits")
    parser.add_argument("--json", metavar="F", type=Path, help="write the scores to this file as well")
    parser.add_argument(
        "--images", choices=("own", "shuffled"), default="own", help="shuffled: each question sees another image"
    )
    parser.add_argument(
        "--weights", choices=("trained", "initial"), default="trained", help="initial: the fusion as training found it"
    )
    add_pipeline_option(parser)
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    check_run(arguments.run)
    if arguments.json is not None:
        check_writable("--json", arguments.json)

    from trainer.export.read import RANKS  # after the run was found: it imports torch
    from trainer.inference.evaluate import evaluate_export, evaluated_config
    from trainer.scoring.baselines import table
    from trainer.training.preflight import plan_machine

    config = evaluated_config(arguments.run, arguments.pipeline, arguments.overrides)
    machine = plan_machine(config, os.environ)
    # On a CPU threads share the work as well as ranks do, and a process more costs the imports of one.
    is_shared = machine.gpus > 0 or any(override.startswith(RANKS) for override in arguments.overrides)
    how = {name: getattr(arguments, name) for name in ("split", "images", "weights", "pipeline", "overrides")}
    if machine.processes == 1 or not is_shared:
        found = evaluate_export(arguments.run, **how)
    else:
        code, found = _on_ranks(arguments.run, how, config, machine)
        if found is None:
            return code
    for line in (*_score_lines(found.metrics, found.counts), *table(found.metrics, arguments.split)):
        say(line)
    if arguments.json is not None:
        finite = {name: value if math.isfinite(value) else None for name, value in found.metrics.items()}
        write_json(arguments.json, {"split": arguments.split, "metrics": finite, "counts": found.counts})
    for said, file in (("to hand in", found.predictions), ("to read", found.table), ("scores", arguments.json)):
        if file is not None:
            say(f"written, {said}: {file}")
    return DONE


def _on_ranks(
    run: Path, how: Mapping[str, Any], config: "RunConfig", machine: "Machine"
) -> tuple[int, "Evaluated | None"]:
    """The exit code of the ranks, and what they have found if they have come to the end."""
    from trainer.commands.ranks import work_on_ranks
    from trainer.inference.rank import from_json

    with tempfile.TemporaryDirectory(prefix="duoflow.evaluate.") as aside:
        asked, scores = Path(aside) / "asked.json", Path(aside) / "scores.json"
        asked.write_text(json.dumps({"path": str(run), "scores": str(scores), **how}), encoding="utf-8")
        code = work_on_ranks(_RANK_MODULE, [str(asked)], config, machine)
        return code, from_json(scores.read_text(encoding="utf-8")) if code == DONE else None


def _score_lines(metrics: Mapping[str, float], counts: Mapping[str, int]) -> Iterator[str]:
    """`testdev/accuracy  0.7500  of 12,578`: every metric, with the questions behind it where they were counted."""
    width = max(map(len, metrics), default=0)
    for name, value in metrics.items():
        count = counts.get(f"{name}/count", counts.get(name.replace("/accuracy", "/count")))
        yield f"{name:<{width}}  {value:.4f}" + (f"  of {count:,}" if count is not None else "")
