"""The `duoflow` command: arguments in, exit code out. Nothing heavy is imported before a verb needs it."""

import argparse
import errno
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shards.errors import UserError
from shards.progress import say, silence
from trainer.command_line import Parser
from trainer.exit_codes import EXIT_CODES, INTERRUPTED, USER_MISTAKE

_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
"""What no command can do anything about, wherever it happens."""

_TAKE_LAUNCHER_FLAGS = ("train", "launch")
"""Verbs after whose `--` the deepspeed launcher's own flags follow."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns one of `EXIT_CODES`."""
    try:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        return arguments.handler(arguments)
    except UserError as error:
        for line in str(error).splitlines():
            say(f"duoflow: {line}", error=True)
        return USER_MISTAKE
    except OSError as error:
        if error.errno not in _DISK_FAULTS:
            raise
        place = f"{error.filename}: " if error.filename else ""
        say(f"duoflow: {place}{error.strerror}; see to this disk and run the same command again", error=True)
        return USER_MISTAKE
    except KeyboardInterrupt:
        say("duoflow: interrupted", error=True)
        return INTERRUPTED
    finally:
        _flush_output()


class Verb(NamedTuple):
    """A word behind `duoflow`."""

    help: str
    """What the list of verbs says."""
    add: Callable[[Any], None]
    """Adds its parser to the verbs of the command."""


def _lazily(module: str, name: str) -> Callable[[Any], None]:
    """A function of a module that is imported when the verb is asked for: `duoflow --help` waits for none of them."""

    def add(verbs: Any) -> None:
        getattr(importlib.import_module(module), name)(verbs)

    return add


VERBS: dict[str, Verb] = {
    "init": Verb(
        "from your own images and questions to a recipe that runs", _lazily("trainer.commands.init", "add_init_parser")
    ),
    "scenes": Verb(
        "render a small set in the format of GQA, VQA v2, NLVR2, SNLI-VE, LXMERT or MP-DocVQA",
        _lazily("shards.scenes", "add_scenes_parser"),
    ),
    "shards": Verb(
        "build, verify and describe shards of images with their questions",
        _lazily("shards.build.commands", "add_shards_parser"),
    ),
    "features": Verb(
        "keep the tokens of frozen encoders beside the shards",
        _lazily("trainer.commands.features", "add_features_parser"),
    ),
    "train": Verb("train a recipe; the same command goes on after a stop", lambda verbs: _add_train(verbs)),
    "runs": Verb(
        "the runs that there are, and two of them compared", _lazily("trainer.commands.runs_parser", "add_runs_parser")
    ),
    "status": Verb(
        "how runs stand: step, best, speed, time left, what is alive",
        _lazily("trainer.commands.watch", "add_status_parser"),
    ),
    "attach": Verb(
        "follow a run that goes on elsewhere, to its end", _lazily("trainer.commands.watch", "add_attach_parser")
    ),
    "stop": Verb("make a run save and leave, on whatever hosts", _lazily("trainer.commands.watch", "add_stop_parser")),
    "launch": Verb(
        "train on many nodes, or print what would be run",
        _lazily("trainer.commands.launch_parser", "add_launch_parser"),
    ),
    "evaluate": Verb(
        "score a run's best weights on a split", _lazily("trainer.commands.evaluate", "add_evaluate_parser")
    ),
    "answer": Verb("ask a run's model about a photo", _lazily("trainer.commands.answer", "add_answer_parser")),
    "report": Verb(
        "a run as one HTML file: curves, scores, answers with what was looked at, worst errors",
        _lazily("trainer.commands.report", "add_report_parser"),
    ),
    "serve": Verb("a local page that asks a run's model", _lazily("trainer.commands.serve", "add_serve_parser")),
    "export": Verb(
        "copy an export: adapters merged, frozen weights inside, graphs, a repository of the hub",
        _lazily("trainer.commands.export", "add_export_parser"),
    ),
    "score": Verb(
        "a task's official scores of a file of predictions", _lazily("trainer.commands.score", "add_score_parser")
    ),
    "tasks": Verb(
        "what can be learnt: formats, losses, metrics and a recipe of every task",
        _lazily("trainer.commands.tasks", "add_tasks_parser"),
    ),
    "bench": Verb("measure this machine", _lazily("trainer.commands.bench", "add_bench_parser")),
    "doctor": Verb(
        "what this machine can run, and what a recipe misses", _lazily("trainer.doctor.command", "add_doctor_parser")
    ),
    "completion": Verb(
        "completion of verbs, options and choices for a shell",
        _lazily("trainer.commands.completion", "add_completion_parser"),
    ),
}
"""The only list of them, in the order of `duoflow --help`."""


class _Verbs:
    """The verbs of the command as their modules see them: what the list says of a verb stands in VERBS."""

    def __init__(self, subparsers: Any) -> None:
        self._subparsers = subparsers

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser:
        return self._subparsers.add_parser(name, **{"help": VERBS[name].help, **options})


def build_parser(asked: str | None = None) -> Parser:
    """The parser of all verbs; a namespace carries `handler`: namespace -> exit code.

    Args:
        asked: the only verb that is needed; of the others there is the name alone.
    """
    codes = "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
    parser = Parser(
        prog="duoflow",
        description="Train a fusion encoder between two vision encoders for visual question answering. Exit codes: "
        f"{codes}.",
        epilog="duoflow init my_run --images photos --questions rows.csv\nduoflow train my_run.yaml\nduoflow runs",
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="which DuoFlow this is and where, and leave")
    parser.set_defaults(all_verbs=build_parser)
    subparsers = parser.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    verbs = _Verbs(subparsers)
    for name, verb in VERBS.items():
        if asked in (None, name):
            verb.add(verbs)
        else:
            verbs.add_parser(name)
    return parser


class _ShowVersion(argparse.Action):
    """Looks the version up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from trainer.version import ROOT, version

        say(f"duoflow {version()} in {ROOT}, Python {sys.version.partition(' ')[0]}")
        parser.exit()


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    asked = next(iter(argv), "")
    parser = build_parser(asked)
    own, flags = list(argv), []
    if asked in _TAKE_LAUNCHER_FLAGS and "--" in argv:
        own, flags = list(argv[: argv.index("--")]), list(argv[argv.index("--") + 1 :])
    arguments, rest = parser.parse_known_args(own)
    if flags and getattr(arguments, "hostfile", None) is None:
        parser.error(f"{flags[0]}: flags of the deepspeed launcher after `--` are for --hostfile")
    arguments.launcher_flags = flags
    # argparse gives `a=1` in `train RECIPE --fresh a=1` to nobody: it has closed the list of overrides before.
    takes_overrides = "overrides" in arguments
    unknown = [word for word in rest if word.startswith("-") or not takes_overrides]
    if unknown:
        arguments.parser.refuse_unknown(unknown[0])
    if takes_overrides:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _add_train(verbs: Any) -> None:
    from trainer.commands.launch_parser import add_hostfile_option
    from trainer.commands.watch import add_watch_options

    parser = verbs.add_parser(
        "train",
        description="Train a recipe. The run lies in runs/NAME, where NAME is the recipe's file name or run.name. The "
        "same command goes on with a run that was stopped.",
        epilog="duoflow train recipes/easyvqa.yaml --dry-run\n"
        "duoflow train recipes/easyvqa.yaml optim.lr=3e-5 run.name=slower --detach",
    )
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="YAML file, or the config.yaml of a run")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="values to change, such as optim.lr=3e-5")
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would happen")
    parser.add_argument("--json", action="store_true", help="with --dry-run: print JSON")
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
        return _dry_run(arguments.recipe, overrides, fresh=arguments.fresh, as_json=arguments.json)
    if arguments.json:
        raise UserError("--json: is about the table of --dry-run; add that, or leave it out (a run has metrics.jsonl)")

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


def _dry_run(recipe: Path, overrides: Sequence[str], *, fresh: bool, as_json: bool) -> int:
    from trainer.config import load_config

    config = load_config(recipe, overrides)

    from trainer.commands.dry_run import dry_run  # after the recipe was read: it imports torch

    say(dry_run(config, fresh=fresh, as_json=as_json))
    return 0


def _flush_output() -> None:
    """Python flushes once more at exit, and would end with 120 if the reader of a pipe has gone."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            silence(stream)


if __name__ == "__main__":
    sys.exit(main())
