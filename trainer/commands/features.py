"""The `features` verb: tokens of a recipe's frozen encoders, written once beside the shards."""

import argparse
import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any, get_args

from shards.errors import ConfigError, UserError
from shards.format.features import TokenType
from shards.progress import say
from trainer.command_line import SPLITS
from trainer.config import RunConfig, dump_config, load_config
from trainer.exit_codes import DONE, FAILED, STOPPED

_RANK_MODULE = "trainer.features.rank"
_STAYS = "finished tars stay, and the same command goes on from there"


def add_features_parser(verbs: Any) -> None:
    """Add `features cache`; its namespace carries `handler`: namespace -> exit code."""
    features = verbs.add_parser(
        "features",
        description="Keep what frozen encoders make of images, so that no epoch computes it again.",
        epilog="duoflow features cache recipe.yaml --split train",
    )
    parser = features.add_subparsers(metavar="WHAT", required=True).add_parser(
        "cache",
        help="write the tokens of a recipe's frozen encoders for a split",
        description="Write the tokens of every frozen encoder of a recipe for all images of a split. The same command "
        "goes on after a stop, and writes anew what is damaged. Training and evaluation use what fits (data.features).",
        epilog="duoflow features cache recipe.yaml --split train --dry-run\n"
        "duoflow features cache recipe.yaml --split train",
    )
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="YAML file, or the config.yaml of a run")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="values to change, as for duoflow train")
    parser.add_argument("--split", required=True, choices=SPLITS, help="which of the recipe's splits")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="in the place of `features/` beside the shards (data.features_directory)",
    )
    parser.add_argument(
        "--dtype",
        choices=get_args(TokenType),
        default="fp16",
        help="fp16, or int8 with a scale for each token: half the bytes (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be written and how long it takes")
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    overrides = list(arguments.overrides)
    if arguments.out is not None:
        overrides.append(f"data.features_directory={arguments.out}")
    config = load_config(arguments.recipe, overrides)
    split, dtype = arguments.split, arguments.dtype
    if getattr(config.data, split) is None:
        raise ConfigError(f"data.{split}: is not set; name a directory of shards built with `duoflow shards build`")

    from trainer.training.preflight import plan_machine  # after the recipe was read

    machine = plan_machine(config, os.environ)
    if arguments.dry_run:
        return _dry_run(config, split, dtype, machine.processes)
    if split == "train" and config.data.augment is not None:
        say(f"features: with data.augment={config.data.augment} training changes its pictures and reads none of this")
    with _alone_in(config, split):
        code = _cache_here(config, split, dtype) if machine.processes == 1 else _launch(config, split, dtype, machine)
    if code in (STOPPED, FAILED):
        say(f"features: {'stopped' if code == STOPPED else 'not whole'}; {_STAYS}", error=True)
    if code == DONE and arguments.out is not None:
        say(f"features: a run reads them with data.features_directory={arguments.out}")
    return code


def _dry_run(config: RunConfig, split: str, dtype: TokenType, ranks: int) -> int:
    from trainer.features.write import describe, estimate, missing_tars, prepare

    world = _this_process()
    work = prepare(config, split, dtype, world)
    todo, _ = missing_tars(work, range(len(work.counts)))
    for line in work.never:
        say(f"features: {line}")
    say(describe(work, estimate(work, ranks, world.device, todo), ranks))
    return DONE


def _cache_here(config: RunConfig, split: str, dtype: TokenType) -> int:
    from trainer.engine.signals import StopRequest
    from trainer.engine.waiting import StoppedError
    from trainer.features.write import prepare, write_features

    world = _this_process()
    with StopRequest() as stop:
        work = prepare(config, split, dtype, world)
        for line in work.never:
            say(f"features: {line}")
        try:
            write_features(work, world, say=say, stopped=lambda: stop.requested)
        except StoppedError:
            return STOPPED
    for target in work.targets:
        say(f"features: {target.directory} is whole")
    return DONE


def _launch(config: RunConfig, split: str, dtype: TokenType, machine: Any) -> int:
    from trainer.commands.ranks import work_on_ranks

    with tempfile.TemporaryDirectory(prefix="duoflow.features.") as aside:
        recipe = Path(aside) / "config.yaml"
        recipe.write_text(dump_config(config), encoding="utf-8")
        return work_on_ranks(_RANK_MODULE, [str(recipe), split, dtype], config, machine)


def _this_process() -> Any:
    import torch

    from trainer.engine.distributed import World, device_type

    return World(device=torch.device(device_type()))


@contextlib.contextmanager
def _alone_in(config: RunConfig, split: str) -> Any:
    """The directory of a split's caches, made, and kept from another such command."""
    from shards.build.output_directory import claimed
    from trainer.features.places import features_directory

    directory = features_directory(config, split)
    try:
        with claimed(directory):
            yield
    except PermissionError as error:
        raise UserError(
            f"{directory}: cannot be written: {error.strerror}; name another directory with --out"
        ) from None
