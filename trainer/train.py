"""One rank of a training run: what the deepspeed launcher starts once per GPU, and what runs alone without it.

deepspeed --module trainer.train runs/NAME/config.yaml
python -m trainer.train recipes/easyvqa.yaml optim.lr=3e-4
"""

import argparse
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist
from transformers.utils import logging as transformers_logging

from launch.ranks import record_rank
from model.objective import Objective
from shards.errors import ConfigError, UserError
from shards.index import index_digest
from trainer.build import (
    assemble_model,
    evaluation_loader,
    open_split,
    shared_tokenizer,
    training_loader,
)
from trainer.checkpoints import Checkpoints
from trainer.config import RunConfig, check_world_size, dump_config, load_config, policy_path
from trainer.deepspeed_config import read_policy, resolve, resolve_precision
from trainer.distributed import LostRankError, World, initialize, leave
from trainer.early_stopping import EarlyStopping
from trainer.engine import Engine
from trainer.environment import collect_environment
from trainer.initial_weights import initialize_from
from trainer.loop import Outcome, fit
from trainer.milestones import Milestones
from trainer.pictures import build_pictures
from trainer.preflight import check_same_data
from trainer.progress import Console, ConsoleHandler, Progress
from trainer.recorders import JsonlRecorder, Recorders, TensorBoardRecorder
from trainer.resume_policy import check_resumable
from trainer.run import Run, TrainState
from trainer.run_directory import DONE, FAILED, STOPPED, USER_MISTAKE, RunDirectory, write_json
from trainer.signals import StopRequest

logger = logging.getLogger(__name__)

_SAFE_VALUE = re.compile(r"[\w@%+=:,./-]*")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as one rank; returns DESIGN's exit code and leaves it in status.json."""
    options = _parse(arguments)
    rank = int(os.environ.get("RANK", "0"))
    try:
        _check_values(options.overrides)
        config = load_config(options.recipe, options.overrides)
        directory = RunDirectory.of(config)
    except UserError as error:
        return _refuse(error, rank)
    with StopRequest() as stop:
        directory.create()
        _log_to(directory, rank)
        record_rank(directory.ranks, rank)
        if rank == 0:
            directory.change_status("running", message="starting")
        try:
            world = initialize(config.engine.timeout_seconds)
            code = _settle(directory, world, _train(config, directory, world, stop))
            world.close()
            return code
        except UserError as error:
            _leave_status(directory, USER_MISTAKE, str(error))
            return _abandon(_refuse(error, rank))
        except LostRankError as error:
            logger.error("%s", error)
            _leave_status(directory, FAILED, str(error))
            return _abandon(FAILED)
        except Exception as error:
            logger.error("rank %d failed:\n%s", rank, traceback.format_exc())
            _leave_status(directory, FAILED, f"rank {rank}: {type(error).__name__}: {error}; see {directory.logs}")
            return _abandon(FAILED)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="trainer.train", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="a recipe, or the config.yaml of a run directory")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values in place of the recipe's")
    parser.add_argument("--local_rank", type=int, help="given by some launchers; the environment is what counts")
    return parser.parse_args(arguments)


def _check_values(overrides: Sequence[str]) -> None:
    """The launcher's remote shell reads values again: beyond one node only harmless ones may pass.

    Raises:
        ConfigError: a value with other characters.
    """
    if int(os.environ.get("CROSS_SIZE", "1")) == 1:  # nodes, as DeepSpeed's launcher counts them
        return
    for override in overrides:
        if not _SAFE_VALUE.fullmatch(override):
            raise ConfigError(
                f"{override}: beyond one node a value may hold letters, digits and @%+=:,./- alone, because a remote "
                "shell reads it; write it in the recipe"
            )


def _train(config: RunConfig, directory: RunDirectory, world: World, stop: StopRequest) -> Outcome:
    world.agree_or_raise(_fault(config, directory, world))
    run, state = _build(config, directory, world, stop)
    try:
        return fit(run, state)
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise LostRankError(
            f"rank {world.rank} of {world.world_size} lost the other ranks while training: {reason}; the rank that "
            "failed first has the cause in its log"
        ) from error
    finally:
        run.recorder.close()


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective of DeepSpeed's has failed; NCCL's errors have a class, gloo's only their text."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _fault(config: RunConfig, directory: RunDirectory, world: World) -> UserError | None:
    """What is wrong with the recipe on this rank, before any model is loaded; rank 0 settles the run directory."""
    try:
        check_world_size(config, world.world_size)
        read_policy(policy_path(config))
        for name in ("train", "val"):
            if name == "train" or config.data.val is not None:
                open_split(config, name)
        if world.rank == 0:
            check_same_data(config)
            previous = directory.read_config()
            if previous is not None:
                check_resumable(previous, config, str(directory.path))
            directory.write_config(config)
    except UserError as error:
        return error
    return None


def _build(config: RunConfig, directory: RunDirectory, world: World, stop: StopRequest) -> tuple[Run, TrainState]:
    train = open_split(config, "train")
    built = world.agree_on(
        lambda: assemble_model(config, scratch_tokenizer=shared_tokenizer(config, train, directory, world))
    )
    if config.initialize_from is not None:
        source = config.initialize_from
        logger.info("initialize_from: %s", world.agree_on(lambda: initialize_from(built.objective, source)))
    trained = sum(parameter.numel() for parameter in built.objective.parameters())  # under ZeRO-3 empty from now on
    batches, loader = training_loader(config, train, built, world)
    validation = None
    if config.data.val is not None:
        split = open_split(config, "val")
        validation = evaluation_loader(config, split, built, world, max_images=config.validate_every.max_images)
    engine = _engine(config, built.objective, world)
    built.objective.place_frozen(engine.device, engine.dtype)
    milestones = Milestones.of(config, train.steps_per_epoch)
    checkpoints = Checkpoints(directory.checkpoints, world)
    early = config.early_stopping
    state = TrainState(
        early_stopping=EarlyStopping(mode=early.mode, patience=early.patience, min_delta=early.min_delta)
    )
    identity = {name: index_digest(path) for name in ("train", "val") if (path := getattr(config.data, name))}
    resumed = _resume(checkpoints, engine, state)
    questions = int(validation[0].order.visits.sizes.sum()) if validation is not None else 0
    run = Run(
        config=config,
        directory=directory,
        world=world,
        built=built,
        engine=engine,
        train_batches=batches,
        train_loader=loader,
        validation=validation,
        milestones=milestones,
        checkpoints=checkpoints,
        identity=identity,
        pictures=world.agree_on(lambda: build_pictures(config, built, engine.device) if world.rank == 0 else None),
        recorder=_recorder(config, directory, world, state.global_step if resumed else None),
        console=Console(
            total_steps=milestones.total_steps, every_steps=config.logging.every_steps, is_main=world.rank == 0
        ),
        progress=Progress(
            total_steps=milestones.total_steps,
            total_validations=milestones.total_validations,
            questions_per_validation=questions,
            validations_done=state.global_step // milestones.validate_every if milestones.validate_every else 0,
        ),
        stop=stop,
    )
    _introduce(run, state, num_questions=int(train.visits.num_questions.sum()), num_trained=trained)
    return run, state


def _engine(config: RunConfig, objective: Objective, world: World) -> Engine:
    batch, optim = config.batch, config.optim
    resolved = resolve(
        read_policy(policy_path(config)),
        precision=resolve_precision(config.precision, world.device.type, t5_is_trained=objective.trains_t5),
        visits=batch.visits,
        micro_visits=batch.micro_visits,
        accumulation=check_world_size(config, world.world_size),
        world_size=world.world_size,
        max_grad_norm=optim.max_grad_norm,
    )
    return Engine(
        objective,
        world=world,
        deepspeed_config=resolved,
        learning_rate=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        gradient_patience=2 if objective.adapters else 1,  # LoRA's B is 0 at first and holds A's gradient back
    )


def _resume(checkpoints: Checkpoints, engine: Engine, state: TrainState) -> bool:
    """Continue from the newest intact checkpoint, if there is one; collective."""
    name = checkpoints.newest()
    if name is None:
        return False
    saved, progress = checkpoints.load(name)
    engine.import_state(saved)
    state.load({key: value for key, value in progress.items() if key not in ("identity", "world_size")})
    logger.info("resumed from %s at step %d", checkpoints.path(name), state.global_step)
    return True


def _recorder(config: RunConfig, directory: RunDirectory, world: World, resumed_step: int | None) -> Recorders:
    if world.rank != 0:
        return Recorders([])
    recorders = [JsonlRecorder(directory.metrics, resumed_step=resumed_step)]
    if config.logging.tensorboard:
        recorders.append(TensorBoardRecorder(directory.tensorboard, resumed_step=resumed_step))
    recorder = Recorders(recorders)
    recorder.text("recipe", dump_config(config))
    return recorder


def _cost_of_guidance(run: Run) -> str:
    rows = run.config.data.questions_per_visit
    return (
        "second_stream efficient_sam_masks: the fusion runs once per question, up to "
        f"{rows} times as often as with efficient_sam, no question shares keys and values with another, and each one "
        "takes a heatmap and a pass of the mask decoder"
    )


def _introduce(run: Run, state: TrainState, *, num_questions: int, num_trained: int) -> None:
    """Say what is about to be trained, and on what."""
    hosts = run.world.gather_text(os.uname().nodename)
    devices = run.world.gather_text(str(run.world.device))
    if run.world.rank != 0:
        return
    write_json(run.directory.environment, collect_environment(hosts=hosts, devices=devices))
    frozen = run.built.objective.frozen_counts()
    milestones = run.milestones
    logger.info("%s", run.directory.path)
    logger.info(
        "training %s parameters; frozen: %s",
        f"{num_trained:,}",
        ", ".join(f"{name} {count:,}" for name, count in frozen.items()) or "nothing",
    )
    if run.built.objective.is_guided:
        logger.info("%s", _cost_of_guidance(run))
    logger.info(
        "%s questions in %s visits: %d steps per epoch, %d in all, from step %d; %d rank(s) on %s, ZeRO-%d, %s",
        f"{num_questions:,}",
        f"{len(run.train_batches.split.visits):,}",
        milestones.steps_per_epoch,
        milestones.total_steps,
        state.global_step,
        run.world.world_size,
        run.world.device.type,
        run.engine.zero_stage,
        str(run.engine.dtype).removeprefix("torch."),
    )


def _settle(directory: RunDirectory, world: World, outcome: Outcome) -> int:
    code = DONE if outcome.finished else STOPPED
    if world.rank == 0:
        state = "done" if outcome.finished else "stopped"
        directory.change_status(state, exit_code=code, message=outcome.message)
        logger.info("%s", outcome.message)
    return code


def _leave_status(directory: RunDirectory, code: int, message: str) -> None:
    """The first rank that fails says why; ranks that lost it do not write over that."""
    try:
        status = directory.read_status()
        if status is None or status.state != "failed":
            directory.change_status("failed", exit_code=code, message=message)
    except (OSError, UserError) as error:
        logger.error("%s: cannot be written (%s)", directory.status, error)


def _refuse(error: UserError, rank: int) -> int:
    # All ranks have agreed on the error: one of them says it.
    if rank == 0 or not str(error).startswith("rank "):
        logger.error("%s", error) if logging.getLogger().handlers else print(f"duoflow: {error}", file=sys.stderr)
    return USER_MISTAKE


def _abandon(code: int) -> int:
    """Leave at once: closing process groups and loader workers can wait for ranks that are gone."""
    logging.shutdown()
    os._exit(code)


def _log_to(directory: RunDirectory, rank: int) -> None:
    """Everything to the rank's file; the console hears rank 0, and errors of all ranks."""
    file = logging.FileHandler(directory.rank_log(rank), encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    console = ConsoleHandler()
    console.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    console.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[file, console], force=True)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    leave(main())
