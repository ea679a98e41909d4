"""Runs the cases of test_engine.py on one rank and writes what happened to OUT/CASE.rankN.json."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch

from shards.errors import DataError, UserError
from tests.distributed import rounding as attention
from tests.distributed.toy import PRECISIONS, STAGES, VISITS, Toy, ToyBatch, step_batches
from trainer.engine import partitions
from trainer.engine.deepspeed_config import read_policy, resolve
from trainer.engine.distributed import World, initialize
from trainer.engine.engine import Engine, Update
from trainer.engine.parameter_groups import parameter_groups
from trainer.engine.process import leave
from trainer.engine.state_file import EngineState
from trainer.training.checkpoints import Checkpoints

ROOT = Path(__file__).parents[2]
MICRO_VISITS = 2


def build(
    world: World, stage: int, precision: str = "fp32", *, patience: int = 1, shipped: bool = False, **toy: Any
) -> Engine:
    """An engine around a toy, by a policy of ds_configs/.

    Args:
        shipped: take the policy as it is; otherwise its buckets shrink to the size of the toy, so that there are
            several of them and, at stage 3, parameters that are kept whole beside others that are not.
    """
    policy = read_policy(ROOT / "ds_configs" / f"zero{stage}.json")
    if not shipped and stage > 0:
        policy["zero_optimization"]["reduce_bucket_size"] = 100
    if not shipped and stage == 3:
        policy["zero_optimization"]["stage3_param_persistence_threshold"] = 20
    config = resolve(
        policy,
        precision=precision,
        visits=VISITS,
        micro_visits=MICRO_VISITS,
        accumulation=VISITS // (MICRO_VISITS * world.world_size),
        world_size=world.world_size,
        max_grad_norm=1.0,
    )
    if precision == "fp16":
        # The toy's gradients fit below this scale, and it grows within the few steps of a test.
        config["fp16"] |= {"initial_scale_power": 8, "loss_scale_window": 2}
    module = Toy(**({"seed": 1} | toy))
    return Engine(
        module,
        world=world,
        deepspeed_config=config,
        learning_rate=0.05,
        groups=parameter_groups(module, 0.1),
        gradient_patience=patience,
    )


def train_step(
    engine: Engine, world: World, step: int, poison: Callable[[ToyBatch], ToyBatch] = lambda b: b
) -> tuple[float, Update]:
    """One optimizer step; its loss is the mean over all questions of all ranks."""
    engine.train()
    engine.set_learning_rate(0.05 / (1 + step))
    batches = step_batches(step, rank=world.rank, world_size=world.world_size, micro_visits=MICRO_VISITS)
    total, update = 0.0, None
    for i, batch in enumerate(batches):
        torch.manual_seed(hash((step, i, world.rank)))
        output = engine(poison(batch))
        engine.backward(output.loss)
        assert update is None, "a step in the middle of an accumulation"
        update = engine.step()
        total += output.question_sum.item() * batch.scale / (world.world_size * len(batches))
    assert update is not None
    return world.sum_across_ranks([total]).item(), update


def dump(state: EngineState | None) -> dict[str, Any] | None:
    """Every bit of a state as text."""
    if state is None:
        return None
    tensors = {
        f"{group}.{name}": tensor.numpy().tobytes().hex()
        for group, named in (("parameters", state.parameters), *state.moments.items())
        for name, tensor in named.items()
    }
    return tensors | {"step": state.optimizer_step, "skipped": state.skipped_steps, "scaler": state.loss_scaler}


def losses(world: World, _: Path) -> Any:
    """Losses, norms and final parameters of four steps at every stage and precision."""
    results = {}
    for precision in PRECISIONS:
        for stage in STAGES:
            engine = build(world, stage, precision, shipped=True)
            start = dump(engine.export_state())
            steps = [train_step(engine, world, step) for step in range(4)]
            state = engine.export_state()
            results[f"{precision} stage {stage}"] = {
                "start": start,
                "losses": [loss for loss, _ in steps],
                "norms": [update.grad_norm for _, update in steps],
                "scales": [update.loss_scale for _, update in steps],
                "parameters": state and {name: tensor.flatten().tolist() for name, tensor in state.parameters.items()},
                "dtype": str(engine.dtype),
            }
            engine.close()
    return results


def resume(world: World, out: Path) -> Any:
    """Two and two steps with a checkpoint file between them, against four in a row; dropout on."""
    results = {}
    for precision in PRECISIONS:
        for stage in STAGES:
            unbroken = build(world, stage, precision, dropout=0.3)
            expected = [train_step(unbroken, world, step)[0] for step in range(2)]
            middle = unbroken.export_state()
            expected += [train_step(unbroken, world, step)[0] for step in range(2, 4)]
            final = unbroken.export_state()
            unbroken.close()
            checkpoints = Checkpoints(out / f"{precision}-{stage}-{world.world_size}", world)
            name = checkpoints.save("step2", middle, {"step": 2})
            checkpoints.publish("last", name)

            resumed = build(world, stage, precision, dropout=0.3, seed=99)
            state, progress = checkpoints.load(checkpoints.newest())
            resumed.import_state(state)
            exported = resumed.export_state()
            found = [train_step(resumed, world, step)[0] for step in range(progress["step"], 4)]
            results[f"{precision} stage {stage}"] = {
                "expected": [expected[2:], dump(final)],
                "found": [found, dump(resumed.export_state())],
                "round trip": [dump(middle), dump(exported)],
            }
            resumed.close()
    return results


def elsewhere(world: World, out: Path) -> Any:
    """Continue a checkpoint of stage 1 and two ranks at every stage; the world size may be another."""
    checkpoints, results = Checkpoints(out / "fp32-1-2", world), {}
    state, _ = checkpoints.load(checkpoints.newest())
    for stage in STAGES:
        engine = build(world, stage, seed=99)
        engine.import_state(state)
        results[stage] = [train_step(engine, world, step)[0] for step in range(2, 4)]
        engine.close()
    return results


def poisoned(world: World, _: Path) -> Any:
    """A NaN in one micro-batch of the last rank, then a clean step."""
    results = {}

    def poison(batch: ToyBatch) -> ToyBatch:
        return batch._replace(scale=float("nan")) if world.rank == world.world_size - 1 else batch

    for precision in PRECISIONS:
        for stage in STAGES:
            engine = build(world, stage, precision)
            train_step(engine, world, 0)
            before = dump(engine.export_state())
            _, update = train_step(engine, world, 1, poison)
            after = dump(engine.export_state())
            loss, clean = train_step(engine, world, 2)
            results[f"{precision} stage {stage}"] = {
                "same tensors": before == after
                or all(before[k] == after[k] for k in before if k not in ("skipped", "scaler")),
                "update": update._asdict(),
                "clean": clean._asdict(),
                "loss": loss,
            }
            engine.close()
    return results


def no_gradient(world: World, _: Path) -> Any:
    """What is said about a layer without use, and about a factor that starts at zero with and without patience."""
    results = {}
    for stage in STAGES:
        for label, toy, patience, steps in (
            ("unused", {"unused": True}, 1, 1),
            ("low rank", {"low_rank": True}, 1, 1),
            ("low rank, patient", {"low_rank": True}, 2, 3),
        ):
            engine = build(world, stage, patience=patience, **toy)
            try:
                for step in range(steps):
                    train_step(engine, world, step)
                results[f"{label} stage {stage}"] = None
            except UserError as error:
                results[f"{label} stage {stage}"] = str(error)
            engine.close()
    return results


def evaluation(world: World, _: Path) -> Any:
    """Evaluate a different number of times on every rank, between training steps."""
    results = {}
    batch = step_batches(7, rank=0, world_size=1, micro_visits=VISITS)[0]
    for stage in STAGES:
        engine = build(world, stage, dropout=0.3)
        first, _ = train_step(engine, world, 0)
        with engine.evaluation_module() as module, torch.inference_mode():
            values = [module(batch).loss.item() for _ in range(1 + 2 * world.rank)]
            assert not module.training
        state = engine.export_state()
        plain = None
        if state is not None:
            toy = Toy(seed=5, dropout=0.3).eval()
            toy.load_state_dict(state.parameters)
            plain = toy(batch).loss.item()
        second, _ = train_step(engine, world, 1)

        undisturbed = build(world, stage, dropout=0.3)
        results[stage] = {
            "values": values,
            "plain": plain,
            "losses": [first, second],
            "undisturbed": [train_step(undisturbed, world, step)[0] for step in range(2)],
            "training": module.training,
        }
        engine.close()
        undisturbed.close()
    return results


def mismatch(world: World, out: Path) -> Any:
    """Import a state of another model."""
    checkpoints = Checkpoints(out / "fp32-1-2", world)
    state, _ = checkpoints.load(checkpoints.newest())
    engine = build(world, 1, low_rank=True)
    try:
        engine.import_state(state)
    except DataError as error:
        return str(error)
    finally:
        engine.close()
    return None


def agreements(world: World, _: Path) -> Any:
    """Everything that World offers, with different values on every rank."""
    errors = []
    for raising in range(world.world_size):
        error = DataError(f"broken at {raising}") if world.rank == raising else None
        try:
            world.agree_or_raise(error)
        except UserError as agreed:
            errors.append([type(agreed).__name__, str(agreed)])
    world.agree_or_raise(None)
    world.barrier("finish")
    return {
        "any": [world.any_rank(world.rank == 1), world.any_rank(False)],
        "sum": world.sum_across_ranks([1.5, world.rank]).tolist(),
        "text": world.broadcast_text("ä\nb" if world.rank == 0 else None),
        "empty": world.broadcast_text("" if world.rank == 0 else None),
        "from last": world.broadcast_text(f"from {world.rank}", source=world.world_size - 1),
        "gathered": world.gather_text("x" * world.rank),
        "errors": errors,
    }


def failed_save(world: World, out: Path) -> Any:
    """Rank 0 cannot write: its disk is a file."""
    blocked = out / f"blocked-{world.world_size}"
    if world.rank == 0:
        blocked.write_text("not a directory")
    state = build(world, 0).export_state()
    try:
        Checkpoints(blocked / "checkpoints", world).save("step1", state, {})
    except UserError as error:
        return str(error)
    return None


def rounding(world: World, _: Path) -> Any:
    """Training whose gradients differ from those of another world size by the order of a sum."""
    policy = read_policy(ROOT / "ds_configs" / "zero1.json")
    return {name: attention.train(choice, policy, world) for name, choice in attention.CHOICES.items()}


def imports(_: World, __: Path) -> Any:
    """The last case: what all of them together have imported of torch's compilers."""
    return sorted(name for name in sys.modules if name.startswith("torch._inductor.compile"))


CASES = {
    case.__name__: case
    for case in (
        *(losses, resume, elsewhere, poisoned, no_gradient, evaluation, mismatch),
        *(agreements, failed_save, rounding, imports),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank")
    parser.add_argument("out", type=Path)
    parser.add_argument("cases", nargs="+", choices=CASES)
    arguments = parser.parse_args()
    # fp16 on a CPU is slow but exact; DeepSpeed's refusal is about speed.
    deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
    partitions.GATHERED = 50  # of the toy's few numbers, so that a state is gathered in several pieces
    world = initialize(timeout_seconds=60)
    for case in arguments.cases:
        result = CASES[case](world, arguments.out)
        path = arguments.out / f"{case}.{world.world_size}.rank{world.rank}.json"
        path.write_text(json.dumps(result))
    world.close()


if __name__ == "__main__":
    main()
    leave(0)
