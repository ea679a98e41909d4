"""What a rank has before its first step: model, engine, loaders, what was saved, and where to report to."""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from model.cost.flops import StepFlops, no_closed_form
from model.layers import layer_scales
from model.objective import Objective
from shards.errors import DataError
from shards.format.index import index_digest
from trainer.build import (
    assemble_model,
    check_medium,
    classes_of,
    evaluation_loader,
    open_split,
    shared_tokenizer,
    training_loader,
)
from trainer.config import RunConfig, dump_config
from trainer.config.schema import check_world_size
from trainer.config.set_by_recipe import set_by_recipe
from trainer.engine.deepspeed_config import Precision, resolve, resolve_precision
from trainer.engine.distributed import World
from trainer.engine.engine import Engine
from trainer.engine.parameter_groups import parameter_groups
from trainer.engine.peak import matmul_peak
from trainer.engine.signals import StopRequest
from trainer.export.initial_weights import initialize_from, start_answers
from trainer.features.use import cacheable_streams, cached_sight, described
from trainer.reporting.environment import collect_environment
from trainer.reporting.gauge import Gauge
from trainer.reporting.progress import Console, Progress
from trainer.reporting.recorders import JsonlRecorder, Recorder, Recorders
from trainer.reporting.tensorboard import TensorBoardRecorder
from trainer.reporting.trackers import open_tracker
from trainer.run_directory import RunDirectory, write_json
from trainer.tasks import task_named
from trainer.training.agreement import agree_on_weights
from trainer.training.checkpoints import Checkpoints
from trainer.training.early_stopping import EarlyStopping
from trainer.training.lost_answers import lost_answers
from trainer.training.memory_plan import settle_micro_visits
from trainer.training.milestones import Milestones
from trainer.training.pictures import build_pictures
from trainer.training.policy import settle_policy
from trainer.training.profile import StepProfiler
from trainer.training.schedule import schedule_of
from trainer.training.sight import SightWatch
from trainer.training.state import HOST_SUMS, Run, TrainState

logger = logging.getLogger(__name__)

CACHED = "cached_tokens"
"""In the identity of a run: the caches that it reads."""
PACKED_STEPS = 20
"""Steps over which the start says what packing by tokens saves."""


def set_up(
    config: RunConfig, directory: RunDirectory, world: World, stop: StopRequest, *, run_id: str
) -> tuple[Run, TrainState]:
    """The run from its first step, or from the newest intact checkpoint of its directory; collective.

    Args:
        run_id: what its checkpoints carry.

    Raises:
        UserError: on all ranks, where weights, shards or a checkpoint are not what the recipe needs on any of them.
    """
    train = open_split(config, "train")
    built = world.agree_on(
        lambda: assemble_model(
            config,
            scratch_tokenizer=shared_tokenizer(config, train, directory, world),
            classes=classes_of(config, train.index),
        )
    )
    agree_on_weights(built, world)
    checkpoints = Checkpoints(directory.checkpoints, world, run_id)
    newest = checkpoints.newest()
    if config.answers.start_from is not None and newest is None:
        logger.info("answers.start_from: %s", world.agree_on(lambda: start_answers(built, config.answers)))
    if config.initialize_from is not None and newest is None:
        source = config.initialize_from
        logger.info("initialize_from: %s", world.agree_on(lambda: initialize_from(built.objective, source)))
    trained = sum(parameter.numel() for parameter in built.objective.parameters())  # under ZeRO-3 empty from now on
    check_medium(config, built, train)
    precision = resolve_precision(config.precision, world.device.type, too_wide=built.objective.too_wide_for_fp16)
    policy = settle_policy(config, world, parameters=trained, precision=precision)
    config = settle_micro_visits(config, built, train.index, world, policy=policy, precision=precision)
    splits = ("train", "val") if config.data.val is not None else ("train",)
    streams = cacheable_streams(config, built, splits, world)  # before the weights are cast
    engine = _engine(config, built.objective, world, policy, precision)
    built.objective.place_frozen(engine.device, engine.dtype)
    with engine.evaluation_module():
        built = built.settled(engine.device, world.any_rank)
    sights = {"train": cached_sight(config, "train", train, streams, built, world)}
    batches, loader = training_loader(config, train, built, world, features=sights["train"])
    validation = None
    if config.data.val is not None:
        split = open_split(config, "val")
        sights["val"] = cached_sight(config, "val", split, streams, built, world)
        validation = evaluation_loader(
            config, split, built, world, max_images=config.validate_every.max_images, features=sights["val"]
        )
    milestones = Milestones.of(config, train.steps_per_epoch)
    early = config.early_stopping
    state = TrainState(
        early_stopping=EarlyStopping(mode=early.mode, patience=early.patience, min_delta=early.min_delta),
        sum_names=(*built.objective.sum_names, *HOST_SUMS),
    )
    identity = {name: index_digest(path) for name in ("train", "val") if (path := getattr(config.data, name))}
    if config.answers.list is not None:
        identity["answers"] = hashlib.sha256("\n".join(built.classes).encode()).hexdigest()
    if cached := described(sights):
        identity[CACHED] = cached
    if newest is not None:
        _resume(checkpoints, newest, engine, state, identity)
    questions = int(validation[0].order.visits.num_questions.sum()) if validation is not None else 0
    run = Run(
        config=config,
        task=task_named(config.task),
        directory=directory,
        world=world,
        built=built,
        engine=engine,
        train_batches=batches,
        train_loader=loader,
        validation=validation,
        milestones=milestones,
        schedule=schedule_of(config.optim, milestones.total_steps),
        checkpoints=checkpoints,
        run_id=run_id,
        identity=identity,
        pictures=world.agree_on(lambda: build_pictures(config, built, engine.device) if world.rank == 0 else None),
        sight=SightWatch(),
        recorder=_recorder(config, directory, world, run_id, None if newest is None else state.global_step),
        console=Console(
            total_steps=milestones.total_steps, every_steps=config.logging.every_steps, is_main=world.rank == 0
        ),
        progress=Progress(
            total_steps=milestones.total_steps,
            total_validations=milestones.total_validations,
            questions_per_validation=questions,
            validations_done=state.global_step // milestones.validate_every if milestones.validate_every else 0,
        ),
        gauge=_gauge(config, built.objective, engine, world),
        profiler=_profiler(config, directory, world),
        stop=stop,
    )
    _introduce(run, state, num_questions=int(train.visits.num_questions.sum()), num_trained=trained)
    return run, state


def _engine(
    config: RunConfig, objective: Objective, world: World, policy: dict[str, Any], precision: Precision
) -> Engine:
    batch, optim = config.batch, config.optim
    lr_scales = None if optim.layer_decay is None else layer_scales(objective, optim.layer_decay)
    resolved = resolve(
        policy,
        precision=precision,
        visits=batch.visits,
        micro_visits=batch.least_visits,
        accumulation=check_world_size(config, world.world_size),
        world_size=world.world_size,
        max_grad_norm=optim.max_grad_norm,
    )
    return Engine(
        objective,
        world=world,
        deepspeed_config=resolved,
        learning_rate=optim.lr,
        optimizer=optim.choice,
        groups=parameter_groups(objective, optim.weight_decay, lr_scales),
        gradient_patience=2 if objective.starts_gated else 1,
    )


def _gauge(config: RunConfig, objective: Objective, engine: Engine, world: World) -> Gauge:
    """Collective: ranks that share a machine measure what it can do at the same time."""
    missing, peak = no_closed_form(objective), None
    if missing is None:
        peak = world.sum_across_ranks([matmul_peak(engine.device, engine.dtype)]).item()
        logger.info("large matrix products reach %.3g FLOP/s: MFU is a part of that", peak)
    else:
        logger.info("no MFU: %s", missing)
    return Gauge(
        flops=StepFlops(objective) if missing is None else None,
        peak=peak,
        ranks=world.world_size,
        ahead=config.data.workers > 0,
        asynchronous=engine.device.type != "cpu",
        engine_network=engine.network_seconds,
    )


def _profiler(config: RunConfig, directory: RunDirectory, world: World) -> StepProfiler | None:
    """On rank 0, which does what the others do."""
    steps = config.logging.profile_steps
    return StepProfiler(directory.profile, steps, world.device) if steps and world.rank == 0 else None


def _resume(
    checkpoints: Checkpoints, name: str, engine: Engine, state: TrainState, identity: Mapping[str, str]
) -> None:
    """Continue from a checkpoint; collective."""
    saved, progress = checkpoints.load(name)
    if progress["identity"].get("answers") != identity.get("answers"):
        raise DataError(
            "answers.list: the answers are not those that this run was trained on; put the file back, or start over "
            "with --fresh"
        )
    if progress["identity"].get(CACHED, "") != identity.get(CACHED, ""):
        logger.info(
            "features: other cached tokens than up to this checkpoint, or none: losses differ by rounding from here on"
        )
    engine.import_state(saved)
    state.load({key: value for key, value in progress.items() if key not in ("identity", "world_size")})
    logger.info("resumed from %s at step %d", checkpoints.path(name), state.global_step)


def _recorder(
    config: RunConfig, directory: RunDirectory, world: World, run_id: str, resumed_step: int | None
) -> Recorders:
    if world.rank != 0:
        return Recorders([])
    recorders: list[Recorder] = [JsonlRecorder(directory.metrics, resumed_step=resumed_step)]
    if config.logging.tensorboard:
        recorders.append(TensorBoardRecorder(directory.tensorboard, resumed_step=resumed_step))
    recorders += _trackers(config, directory, run_id)
    recorder = Recorders(recorders)
    shown = [f"val/{name}" for _, name in task_named(config.task).headline]
    recorder.introduce(set_by_recipe(config), list(dict.fromkeys([config.early_stopping.metric, *shown])))
    recorder.text("recipe", dump_config(config))
    return recorder


def _trackers(config: RunConfig, directory: RunDirectory, run_id: str) -> Iterator[Recorder]:
    tracker = config.logging.tracker
    if tracker is not None:
        try:
            yield open_tracker(tracker, name=directory.path.name, run_id=run_id, directory=directory.path / tracker)
        except OSError as error:  # metrics.jsonl has everything, and no tracker is worth a run
            logger.warning("logging.tracker: %s does not answer (%s); the run goes on without it", tracker, error)


def _cost_of_guidance(run: Run) -> str:
    rows = run.config.data.questions_per_visit
    return (
        "second_stream efficient_sam_masks: the fusion runs once per question, up to "
        f"{rows} times as often as with efficient_sam, no question shares keys and values with another, and each one "
        "takes a heatmap and a pass of the mask decoder"
    )


def _packing(run: Run) -> str:
    """What packing by tokens comes to, over the first steps of the first epoch and this rank."""
    batches, steps = run.train_batches.packed, range(min(PACKED_STEPS, run.milestones.steps_per_epoch))
    counts = [len(batches.micro_batches(0, step)) for step in steps]
    packed, plain = (sum(tokens) for tokens in zip(*(batches.padded_tokens(0, step) for step in steps), strict=True))
    return (
        f"batch.micro_tokens {run.config.batch.micro_tokens}: {min(counts)} to {max(counts)} micro-batches a step; "
        f"questions are padded to {packed:,} tokens in {len(steps)} steps, and as they come to {plain:,} "
        f"({1 - packed / plain:.1%} fewer)"
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
    if run.config.model.second_stream == "efficient_sam_masks":
        logger.info("%s", _cost_of_guidance(run))
    if run.config.batch.micro_tokens is not None:
        logger.info("%s", _packing(run))
    codec = run.built.answer_codec
    if codec is not None and (lost := lost_answers(codec, run.train_batches.split.index.answers)):
        logger.warning("%s: %s", run.config.data.train, lost)
    logger.info(
        "%s questions in %s visits: %d step(s) per epoch, %d in all, from step %d; %d rank(s) on %s, ZeRO-%d, %s",
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
