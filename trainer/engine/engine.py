"""DeepSpeed at arm's length: one module, one optimizer, forward, backward, step, and a state that belongs to us.

The only file that imports deepspeed.
"""

import contextlib
import functools
import importlib
import logging
import math
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.engine import partitions
from trainer.engine.deepspeed_config import zero_stage
from trainer.engine.distributed import World, device_type
from trainer.engine.gradient_watch import GradientWatch
from trainer.engine.network_time import Clock, EventClock, HostClock, time_collectives
from trainer.engine.optimizers import DEFAULT, OptimizerChoice, build_optimizer, check_stage
from trainer.engine.parameter_groups import parameter_groups
from trainer.engine.state_file import EngineState

os.environ.setdefault("DS_ACCELERATOR", device_type())  # else DeepSpeed looks for others, and prints that it found none
import deepspeed
from deepspeed.runtime import compiler

_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What dynamic loss scaling remembers from step to step; stage 0 has no hysteresis."""


class Update(NamedTuple):
    """What an optimizer step did."""

    applied: bool
    """False if gradients were not finite: parameters and moments are as before, and the loss scale may have shrunk."""
    grad_norm: float | None
    """Global L2 norm before clipping, without loss scale; None if it was not finite."""
    loss_scale: float
    """For the next micro-step; 1 unless precision is fp16."""
    skipped_steps: int
    """Updates not applied since the start of the run."""


_ADAMW = OptimizerChoice()


class Engine:
    """Trains the parameters of one module under a ZeRO stage. All ranks call all methods in the same order.

    Args:
        module: its forward takes a batch and returns a NamedTuple with a scalar `loss`. All its parameters are
            trained; frozen modules hang on it unregistered. All ranks need the same graph at the same time: where a
            rank has no work for a part of it, it must still run that part, with weight 0.
        world: from `trainer.engine.distributed.initialize`.
        deepspeed_config: from `trainer.engine.deepspeed_config.resolve`.
        learning_rate: the highest one; it holds until `set_learning_rate` changes it.
        optimizer: which one, and its arguments.
        groups: from `parameter_groups`, all parameters of the module; None decays matrices by 0.01.
        gradient_patience: optimizer steps after which every parameter must have had a gradient that is not zero.

    Losses are averaged over ranks and micro-steps: a loss that is a sum over questions has to be multiplied by
    world size x accumulation / questions of the step before.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        world: World,
        deepspeed_config: dict[str, Any],
        learning_rate: float,
        optimizer: OptimizerChoice = _ADAMW,
        groups: Sequence[dict[str, Any]] | None = None,
        gradient_patience: int = 1,
    ) -> None:
        _check_module(module)
        self.module, self.zero_stage = module, zero_stage(deepspeed_config)
        check_stage(optimizer, self.zero_stage)
        self._world, self._optimizer_step, self._skipped_steps = world, 0, 0
        self._expected: int | None = None
        self._names = {parameter: name for name, parameter in module.named_parameters()}
        self._optimizer_name = optimizer.name
        self._torch = build_optimizer(optimizer, groups or parameter_groups(module, 0.01), learning_rate)
        # At stage 0 DeepSpeed takes a step on zero gradients to create half-precision state, which would decay the
        # parameters; with a learning rate of 0 it changes nothing that is not put back below.
        self.set_learning_rate(0.0)
        self._deepspeed = _initialize(module, self._torch, deepspeed_config, world)
        self._network = _network_clock(world)
        self._optimizer = self._deepspeed.optimizer
        self._shelves = partitions.shelves(self._optimizer, self._names, self.zero_stage)
        if self.zero_stage == 0 and self._optimizer is not self._torch:
            parameters = {name: parameter.detach() for parameter, name in self._names.items()}
            for shelf in self._shelves:
                partitions.scatter(shelf, shelf.master, parameters)
        self._forget()
        self._scaler = _loss_scaler(self._optimizer)
        self.set_learning_rate(learning_rate)
        self._watch = GradientWatch({name: p for p, name in self._names.items()}, patience=gradient_patience)

    @property
    def device(self) -> torch.device:
        """Where the module is and batches have to be."""
        return self._world.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the module's parameters; their master copies are fp32."""
        return next(iter(self._names)).dtype

    def __call__(self, batch: Any) -> Any:
        """The module's forward, ready for `backward`."""
        return self._deepspeed(batch)

    def network_seconds(self) -> float:
        """How long collectives have let this rank wait since it was asked last; 0 for a rank alone."""
        return 0.0 if self._network is None else self._network.take()

    def train(self) -> None:
        """Put the module in training mode."""
        self.module.train()

    def eval(self) -> None:
        """Put the module in evaluation mode."""
        self.module.eval()

    def set_learning_rate(self, learning_rate: float) -> None:
        """From the next step on, for all parameters; a group with an `lr_scale` has that part of it."""
        for group in self._torch.param_groups:
            group["lr"] = learning_rate * group["lr_scale"] if "lr_scale" in group else learning_rate

    def expect(self, micro_steps: int) -> None:
        """The optimizer steps behind so many micro-steps, and not behind as many as its configuration says.

        Losses are divided by the number of the configuration all the same. From the first call on it has to be called
        before every step, with the same number on every rank.
        """
        assert micro_steps > 0, micro_steps
        self._expected = micro_steps

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-step; call `step` after each."""
        if self._expected is not None:
            self._deepspeed.set_gradient_accumulation_boundary(self._expected == 1)
            self._expected -= 1
        if self._scaler is not None and self.zero_stage == 0:
            # DeepSpeed 0.19 divides gradients by the loss scale at every stage, but multiplies only at 1 to 3.
            loss = loss.float() * self._scaler.cur_scale
        self._deepspeed.backward(loss)

    def await_gradients(self) -> None:
        """Wait until the device has done a step's last backward pass; nothing in front of it.

        Costs no time: what follows looks at the norm of the gradients, and so waits for them in any case.
        """
        if self.device.type == "cuda" and self._deepspeed.is_gradient_accumulation_boundary():
            torch.cuda.synchronize(self.device)

    def step(self) -> Update | None:
        """Finish a micro-step: None while gradients accumulate, else what the optimizer step did.

        Raises:
            ConfigError: on all ranks after the first optimizer steps, if a parameter never had a gradient.
        """
        if not self._deepspeed.is_gradient_accumulation_boundary():
            self._deepspeed.step()
            return None
        scale = self._loss_scale()
        norm = self._step_unwrapped() if self._optimizer is self._torch else self._step_wrapped(scale)
        applied = norm is not None
        self._optimizer_step += applied
        self._skipped_steps += not applied
        if applied and self._watch.watching:
            seen = self._watch.step_applied()
            if seen is not None:
                self._watch.report(self._world.max_across_ranks(seen))
        return Update(applied, norm, self._loss_scale(), self._skipped_steps)

    @contextlib.contextmanager
    def evaluation_module(self) -> Iterator[nn.Module]:
        """The module in evaluation mode with whole weights, free of collectives: ranks may call it as often as they
        like, also under `torch.inference_mode`. Entering and leaving are collective; no training happens inside.
        """
        was_training = self.module.training
        self.module.eval()
        try:
            with self._whole_weights() if self.zero_stage == 3 else contextlib.nullcontext():
                yield self.module
        finally:
            self.module.train(was_training)

    def export_state(self) -> EngineState | None:
        """On rank 0 all that the next steps depend on, as full tensors; on the other ranks None."""
        partitions.check_step(self._torch, self._optimizer_step)
        parameters: dict[str, Tensor] = {}
        moments: dict[str, dict[str, Tensor]] = {}
        for shelf in self._shelves:
            parameters |= partitions.gather(shelf, shelf.master)
            for kind, value in partitions.kept(shelf, self._torch).items():
                moments.setdefault(kind, {}).update(partitions.gather(shelf, value))
        if self._world.rank != 0:
            return None
        return EngineState(
            parameters=parameters,
            optimizer=self._optimizer_name,
            moments=moments,
            optimizer_step=self._optimizer_step,
            skipped_steps=self._skipped_steps,
            loss_scaler=_read_scaler(self._scaler),
        )

    def import_state(self, state: EngineState) -> None:
        """Continue from a state, of any stage, world size and precision; every rank has all of it.

        At the stage, world size and precision that it was exported from, training goes on bit for bit on CPUs; on a GPU
        as far as its kernels are deterministic (the backward pass of scaled dot products adds up in any order).

        Raises:
            DataError: the state is that of another module or optimizer.
        """
        state.check_fits({name: tuple(_shape(p)) for p, name in self._names.items()}, self._optimizer_name)
        self._forget()
        if state.optimizer_step and self._optimizer_name != DEFAULT:
            self._create_state()
        if self.zero_stage == 3:
            self._optimizer.checkpoint_event_prologue()
        for shelf in self._shelves:
            partitions.scatter(shelf, shelf.master, state.parameters)
            partitions.restore(shelf, self._torch, state.moments)
        partitions.set_step(self._torch, state.optimizer_step)
        self._refresh_module(state.parameters)
        self._optimizer_step, self._skipped_steps = state.optimizer_step, state.skipped_steps
        for name, value in state.loss_scaler.items():
            if hasattr(self._scaler, name):
                setattr(self._scaler, name, value)

    def close(self) -> None:
        """Give up DeepSpeed's hooks and buffers; the engine cannot be used afterwards."""
        self._deepspeed.destroy()

    def _forget(self) -> None:
        """Bring the optimizer back to where it has made no update."""
        self._torch.state.clear()
        partitions.set_step(self._torch, 0)
        if self._optimizer_name == DEFAULT:
            partitions.create_adamw_state(self._torch, self._shelves)

    def _create_state(self) -> None:
        """Let the optimizer create what it keeps, of its own types, by a step; all of it is overwritten afterwards."""
        for number, shelf in enumerate(self._shelves):
            shelf.key.grad = torch.zeros_like(shelf.key)
            if self.zero_stage > 0:
                self._optimizer._optimizer_step(number)
                shelf.key.grad = None
        if self.zero_stage == 0:
            self._torch.step()
            for shelf in self._shelves:
                shelf.key.grad = None

    def _step_unwrapped(self) -> float | None:
        """fp32 at stage 0: nothing in DeepSpeed looks at the gradients, and one NaN would reach every parameter."""
        norm = float(nn.utils.get_total_norm([p.grad for p in self._names if p.grad is not None]))
        if math.isfinite(norm):
            self._deepspeed.step()
            return norm
        self._deepspeed.zero_grad()
        self._deepspeed.micro_steps += 1  # what its step() would have counted: the next boundary depends on it
        return None

    def _step_wrapped(self, scale: float) -> float | None:
        """DeepSpeed's optimizers leave out a step themselves if gradients are not finite on any rank."""
        self._deepspeed.step()
        if not self._deepspeed.was_step_applied():
            return None
        norm = float(self._optimizer._global_grad_norm)
        if self._scaler is not None and self.zero_stage == 0:
            return norm / scale  # it is that of the scaled gradients
        if self._scaler is not None and self.zero_stage == 3:
            return norm * self._loss_scale() / scale  # it was divided by a scale that may just have grown
        return norm

    def _loss_scale(self) -> float:
        return 1.0 if self._scaler is None else float(self._scaler.cur_scale)

    def _refresh_module(self, parameters: dict[str, Tensor]) -> None:
        """Make the module compute with new master values."""
        if self.zero_stage == 3:
            for i in range(len(self._optimizer.fp16_groups)):
                self._optimizer._reassign_or_swap_out_partitioned_parameters(i)
            self._optimizer.checkpoint_event_epilogue()
            return
        for parameter, name in self._names.items():
            parameter.data.copy_(parameters[name])

    @contextlib.contextmanager
    def _whole_weights(self) -> Iterator[None]:
        """Stage 3: gather all parameters and silence the hooks that would release them after each submodule."""
        self._optimizer.checkpoint_event_prologue()
        with deepspeed.zero.GatheredParameters(list(self._names)), _without_hooks(self.module, self._optimizer):
            yield
        self._optimizer.checkpoint_event_epilogue()


def _initialize(
    module: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any], world: World
) -> deepspeed.DeepSpeedEngine:
    deepspeed.utils.logger.setLevel(logging.WARNING)
    if world.device.type == "cpu":
        # Otherwise DeepSpeed compiles its shared-memory collectives: more than a minute, and an error without a
        # compiler. Filling the table also spares the probing of every other operator.
        vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    # It knows Adam alone and refuses the others until told that they were tried.
    config = config | {"zero_allow_untested_optimizer": True}
    _import_muon()
    with _new_groups_time_out(world.timeout_seconds):
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    return engine


def _network_clock(world: World) -> Clock | None:
    if world.world_size == 1:
        return None
    clock = HostClock() if world.device.type == "cpu" else EventClock(world.device)
    time_collectives(deepspeed.comm.comm.cdb, clock)
    return clock


def _import_muon() -> None:
    """Import DeepSpeed's Muon, as it does itself at every start, without compiling it: nobody calls it here, and with
    the decoration of its functions come torch's compilers, 2.4 s of each rank's processor time."""
    original = compiler.compile
    compiler.compile = lambda *_, **__: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = original


@contextlib.contextmanager
def _new_groups_time_out(seconds: float) -> Iterator[None]:
    """Give every process group that is made meanwhile this timeout, if its maker asks for none.

    DeepSpeed clones the world group for ZeRO with torch's default of up to half an hour, and uses it at once: a timeout
    that is set afterwards would leave out its first collectives.
    """
    original = dist.new_group

    @functools.wraps(original)
    def new_group(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = timedelta(seconds=seconds)
        return original(*args, **kwargs)

    dist.new_group = new_group
    try:
        yield
    finally:
        dist.new_group = original


def _check_module(module: nn.Module) -> None:
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    assert not frozen, f"registered but not trained: {frozen[:5]}; keep frozen modules unregistered"
    assert any(True for _ in module.parameters()), "nothing to train"
    for name, child in module.named_modules():
        # Running statistics differ from rank to rank and are in no checkpoint.
        assert not getattr(child, "track_running_stats", False), f"{name}: batch statistics are not supported"
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Stage 3 keeps parameters empty and their shape aside."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _loss_scaler(optimizer: Any) -> Any:
    """What holds the dynamic loss scale, None unless precision is fp16."""
    scaler = getattr(optimizer, "loss_scale_config", None) or getattr(optimizer, "loss_scaler", None)
    if scaler is None or not getattr(scaler, "dynamic", getattr(scaler, "dynamic_loss_scale", False)):
        return None
    # An overflow at the smallest scale is reported like every other step that is left out, not as a bare Exception.
    scaler.raise_error_at_min_scale = False
    return scaler


def _read_scaler(scaler: Any) -> dict[str, float | int]:
    return {name: getattr(scaler, name) for name in _SCALER_FIELDS if hasattr(scaler, name)}


@contextlib.contextmanager
def _without_hooks(module: nn.Module, optimizer: Any) -> Iterator[None]:
    """Take DeepSpeed's hooks, and only those, off a module and its children, and put them back in their order."""
    offload = optimizer.parameter_offload
    own = {handle.id for handle in (*offload.forward_hooks, *offload.backward_hooks, offload.fwd_pre_hook)}
    tables = [table for m in module.modules() for table in (m._forward_pre_hooks, m._forward_hooks)]
    saved = [dict(table) for table in tables]
    for table in tables:
        for key in own & table.keys():
            del table[key]
    try:
        yield
    finally:
        for table, hooks in zip(tables, saved, strict=True):
            table.clear()
            table.update(hooks)
