"""The `duoflow` command: arguments in, exit code out. Nothing heavy is imported before a verb needs it."""

import argparse
import errno
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from shards.atomic import check_writable
from shards.build.commands import add_shards_parser
from shards.errors import UserError
from shards.progress import say, silence
from shards.scenes import add_scenes_parser
from trainer.bench import answer as bench_answer
from trainer.bench import every as bench_every
from trainer.bench import memory as bench_memory
from trainer.bench import overhead as bench_overhead
from trainer.bench import scaling as bench_scaling
from trainer.bench import step as bench_step
from trainer.bench import vlm as bench_vlm
from trainer.commands.answer import add_answer_parser
from trainer.commands.export import add_export_parser
from trainer.commands.launch_parser import add_hostfile_option, add_launch_parser
from trainer.commands.score import add_score_parser
from trainer.commands.tasks import add_tasks_parser
from trainer.commands.watch import add_watch_options, add_watch_parsers
from trainer.doctor.command import add_doctor_parser
from trainer.export.run_arguments import add_pipeline_option, check_run

EXIT_USER_MISTAKE = 2
EXIT_INTERRUPTED = 130
"""What a shell reports for a process that Ctrl-C ended."""

_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
"""What no command can do anything about, wherever it happens."""

_TAKE_LAUNCHER_FLAGS = ("train", "launch")
"""Verbs after whose `--` the deepspeed launcher's own flags follow."""

SPLITS = ("train", "val", "testdev", "test", "challenge")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb: 0 done, 2 the user's mistake, 75 stopped by a signal after saving, 130 interrupted, 1 else."""
    try:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        return arguments.handler(arguments)
    except UserError as error:
        for line in str(error).splitlines():
            say(f"duoflow: {line}", error=True)
        return EXIT_USER_MISTAKE
    except OSError as error:
        if error.errno not in _DISK_FAULTS:
            raise
        place = error.filename or "a file"
        say(f"duoflow: {place}: {error.strerror}; see to this disk and run the same command again", error=True)
        return EXIT_USER_MISTAKE
    except KeyboardInterrupt:
        say("duoflow: interrupted", error=True)
        return EXIT_INTERRUPTED
    finally:
        _flush_output()


class _Parser(argparse.ArgumentParser):
    """Mistakes are `UserError`s of one line, and options are never guessed from their beginning."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; a namespace carries `handler`: namespace -> exit code."""
    parser = _Parser(
        prog="duoflow", description="Train a fusion encoder between two vision encoders for visual question answering."
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    add_scenes_parser(verbs)
    add_shards_parser(verbs)
    _add_train(verbs)
    add_watch_parsers(verbs)
    add_launch_parser(verbs)
    _add_evaluate(verbs)
    add_answer_parser(verbs)
    add_export_parser(verbs)
    add_score_parser(verbs)
    add_tasks_parser(verbs)
    bench = verbs.add_parser("bench", help="measure this machine", description="Measure; one table, one JSON.")
    benchmarks = bench.add_subparsers(metavar="WHAT", required=True)
    bench_step.add_parser(benchmarks)
    bench_answer.add_parser(benchmarks)
    bench_scaling.add_parser(benchmarks)
    bench_vlm.add_parser(benchmarks)
    bench_overhead.add_parser(benchmarks)
    bench_memory.add_parser(benchmarks)
    bench_every.add_parser(benchmarks)
    add_doctor_parser(verbs)
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = build_parser()
    own, flags = list(argv), []
    if argv[:1] and argv[0] in _TAKE_LAUNCHER_FLAGS and "--" in argv:
        own, flags = list(argv[: argv.index("--")]), list(argv[argv.index("--") + 1 :])
    arguments, rest = parser.parse_known_args(own)
    if flags and getattr(arguments, "hostfile", None) is None:
        parser.error(f"{flags[0]}: flags of the deepspeed launcher after `--` are for --hostfile")
    arguments.launcher_flags = flags
    # argparse gives `a=1` in `train RECIPE --fresh a=1` to nobody: it has closed the list of overrides before.
    takes_overrides = "overrides" in arguments
    unknown = [word for word in rest if word.startswith("-") or not takes_overrides]
    if unknown:
        parser.error(f"unknown argument {unknown[0]}")
    if takes_overrides:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _add_train(verbs: Any) -> None:
    parser = verbs.add_parser(
        "train",
        help="train a recipe; the same command goes on after a stop",
        description="Train a recipe. The run lies in runs/NAME, where NAME is the recipe's file name or run.name. The "
        "same command goes on with a run that was stopped.",
    )
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="YAML file, or the config.yaml of a run")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="values to change, such as optim.lr=3e-5")
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would happen")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and leave")
    parser.add_argument("--fresh", action="store_true", help="set an existing run of this name aside and start over")
    parser.add_argument("--limit", metavar="N", type=int, help="use the first N images of each split (data.limit=N)")
    parser.add_argument(
        "--profile",
        metavar="N",
        type=_count,
        help="trace N steps into the run's profile/, for chrome://tracing (logging.profile_steps=N)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--prepare",
        metavar="RANKS",
        type=_count,
        help="check everything for so many ranks, write the run's config.yaml, print its path and leave: for ranks "
        "that srun or a container starts",
    )
    add_hostfile_option(where)
    add_watch_options(parser)
    parser.set_defaults(handler=_train)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 1 on")
    return int(text)


def _train(arguments: argparse.Namespace) -> int:
    from trainer.config import dump_config, load_config

    overrides = list(arguments.overrides)
    if arguments.limit is not None:
        overrides.append(f"data.limit={arguments.limit}")
    if arguments.profile is not None:
        overrides.append(f"logging.profile_steps={arguments.profile}")
    if arguments.print_config:
        say(dump_config(load_config(arguments.recipe, overrides)).rstrip("\n"))
        return 0
    if arguments.dry_run and arguments.prepare is not None:
        raise UserError("--dry-run: writes nothing, and --prepare does; give one of them")
    if arguments.dry_run and arguments.hostfile is not None:
        raise UserError("--dry-run: over hosts it is `duoflow launch hostfile RECIPE --hostfile F --dry-run`")
    if arguments.dry_run:
        return _dry_run(arguments.recipe, overrides, fresh=arguments.fresh)

    from trainer.commands.start import prepare_training, start_training

    if arguments.prepare is not None:
        return prepare_training(arguments.recipe, overrides, ranks=arguments.prepare, fresh=arguments.fresh)
    prepare = None
    if arguments.hostfile is not None:
        from trainer.commands.launch import over_hosts

        prepare = over_hosts(arguments.hostfile, arguments.launcher_flags, min_nodes=arguments.min_nodes)
    return start_training(
        arguments.recipe,
        overrides,
        fresh=arguments.fresh,
        prepare=prepare,
        detach=arguments.detach,
        restarts=arguments.restarts,
    )


def _dry_run(recipe: Path, overrides: Sequence[str], *, fresh: bool) -> int:
    from trainer.config import load_config

    config = load_config(recipe, overrides)

    from trainer.commands.dry_run import dry_run  # after the recipe was read: it imports torch

    say(dry_run(config, fresh=fresh))
    return 0


def _add_evaluate(verbs: Any) -> None:
    parser = verbs.add_parser(
        "evaluate",
        help="score a run's best weights on a split",
        description="Answer every question of a split with the exported weights of a run, and score the answers.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's directory, such as runs/NAME")
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
    parser.set_defaults(handler=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    check_run(arguments.run)
    if arguments.json is not None:
        check_writable("--json", arguments.json)

    from trainer.inference.evaluate import evaluate_run  # after the run was found: it imports torch
    from trainer.run_directory import write_json

    metrics, counts = evaluate_run(
        arguments.run,
        arguments.split,
        images=arguments.images,
        weights=arguments.weights,
        pipeline=arguments.pipeline,
        overrides=arguments.overrides,
    )
    for line in _score_lines(metrics, counts):
        say(line)
    if arguments.json is not None:
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        write_json(arguments.json, {"split": arguments.split, "metrics": finite, "counts": counts})
    return 0


def _score_lines(metrics: Mapping[str, float], counts: Mapping[str, int]) -> Iterator[str]:
    """`testdev/accuracy  0.7500  of 12,578`: every metric, with the questions behind it where they were counted."""
    width = max(map(len, metrics), default=0)
    for name, value in metrics.items():
        count = counts.get(f"{name}/count", counts.get(name.replace("/accuracy", "/count")))
        yield f"{name:<{width}}  {value:.4f}" + (f"  of {count:,}" if count is not None else "")


def _flush_output() -> None:
    """Python flushes once more at exit, and would end with 120 if the reader of a pipe has gone."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            silence(stream)


if __name__ == "__main__":
    sys.exit(main())
