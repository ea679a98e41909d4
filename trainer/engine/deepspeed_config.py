"""A ZeRO policy file and the recipe's numbers become the one dictionary that DeepSpeed is given."""

import difflib
import json
from pathlib import Path
from typing import Any, Literal

import torch

from model.precision import t5_dtype
from shards.errors import ConfigError

Precision = Literal["fp16", "bf16", "fp32"]

OWNED_BY_THE_RECIPE = {
    "train_batch_size": "batch.visits",
    "train_micro_batch_size_per_gpu": "batch.micro_visits",
    "gradient_accumulation_steps": "batch.visits and batch.micro_visits",
    "optimizer": "optim",
    "scheduler": "optim",
    "gradient_clipping": "optim.max_grad_norm",
    "fp16": "precision",
    "bf16": "precision",
    "bfloat16": "precision",
    "amp": "precision",
    "data_types": "precision",
    "torch_autocast": "precision",
    "tensorboard": "logging",
    "csv_monitor": "logging",
    "wandb": "logging",
    "steps_per_print": "logging",
}
"""Keys of a DeepSpeed file that have another owner, with the recipe's key or section for each."""

POLICY_KEYS = (
    "zero_optimization",
    "communication_data_type",
    "gradient_predivide_factor",
    "prescale_gradients",
    "wall_clock_breakdown",
    "memory_breakdown",
    "comms_logger",
    "flops_profiler",
)
ZERO_KEYS = (
    "stage",
    "allgather_bucket_size",
    "allgather_partitions",
    "contiguous_gradients",
    "log_trace_cache_warnings",
    "memory_efficient_linear",
    "overlap_comm",
    "reduce_bucket_size",
    "reduce_scatter",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_param_persistence_threshold",
    "stage3_prefetch_bucket_size",
    "sub_group_size",
)
"""What a policy may set. Offloading, quantised gradients and the like move the optimizer state to where checkpoints
would not find it, so they are refused rather than passed on."""

FP16_LOSS_SCALE = {
    "enabled": True,
    "loss_scale": 0,
    "initial_scale_power": 16,
    "loss_scale_window": 1000,
    "hysteresis": 2,
    "consecutive_hysteresis": False,
    "min_loss_scale": 1,
}
"""Dynamic loss scaling (`loss_scale` 0): from 2^16, halved on overflow, doubled after 1000 clean steps."""


def read_policy(path: Path) -> dict[str, Any]:
    """Read a ZeRO policy: what one file of ds_configs/ says.

    Raises:
        ConfigError: the file is missing or no JSON, a key is unknown or belongs to the recipe, or the stage is not one
            of 0 to 3.
    """
    try:
        policy = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=lambda pairs: _no_twins(path, pairs))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a file of ds_configs/") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(policy, dict):
        raise ConfigError(f"{path}: expected an object with zero_optimization, found {type(policy).__name__}")
    _check_keys(path, policy)
    return policy


def zero_stage(policy: dict[str, Any]) -> int:
    """The ZeRO stage of a policy or of a resolved configuration."""
    return policy["zero_optimization"]["stage"]


def resolve(
    policy: dict[str, Any],
    *,
    precision: Precision,
    visits: int,
    micro_visits: int,
    accumulation: int,
    world_size: int,
    max_grad_norm: float | None,
) -> dict[str, Any]:
    """The whole DeepSpeed configuration of a run. The policy is not changed.

    Args:
        policy: from `read_policy`.
        precision: of parameters and activations; master weights and Adam moments are fp32 in any case.
        visits: per optimizer step, over all ranks.
        micro_visits: per rank and micro-step.
        accumulation: micro-steps per optimizer step.
        max_grad_norm: gradients of a larger global norm are scaled down to it; None leaves them alone.

    Raises:
        ConfigError: visits are not micro_visits times accumulation times world_size.
    """
    if visits != micro_visits * accumulation * world_size:
        raise ConfigError(
            f"batch.visits: {visits} is not micro_visits {micro_visits} x accumulation {accumulation} x "
            f"world size {world_size} = {micro_visits * accumulation * world_size}"
        )
    config = json.loads(json.dumps(policy)) | {
        "train_batch_size": visits,
        "train_micro_batch_size_per_gpu": micro_visits,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0 if max_grad_norm is None else max_grad_norm,
        # DeepSpeed's throughput timer waits for the device at every step to print what the progress line says.
        "timers": {"throughput": {"enabled": False}},
    }
    if precision == "fp16":
        config["fp16"] = dict(FP16_LOSS_SCALE)
    elif precision == "bf16":
        config["bf16"] = {"enabled": True}
    return config


def resolve_precision(
    precision: Literal["auto", "fp16", "bf16", "fp32"], device_type: str, *, too_wide: str | None = None
) -> Precision:
    """What `auto` means on this device: fp16 on CUDA and fp32 on a CPU. Anything else is checked and returned.

    Args:
        too_wide: `Objective.too_wide_for_fp16`; where there is any, `auto` is bf16 on a CUDA device that computes in
            it, or fp32. A frozen T5 looks after itself.

    Raises:
        ConfigError: the device, or the model, cannot compute in the precision asked for.
    """
    if precision == "auto" and too_wide:
        return "fp32" if t5_dtype(torch.device(device_type)) == torch.float32 else "bf16"
    if precision == "auto":
        return "fp16" if device_type == "cuda" else "fp32"
    if precision == "fp16" and too_wide:
        raise ConfigError(f"precision: fp16 is too narrow for {too_wide}; use precision=auto, bf16 or fp32")
    if precision == "fp16" and device_type == "cpu" and not _cpu_has_fp16():
        raise ConfigError(
            "precision: fp16 needs a GPU, or a CPU with AVX512-FP16, and this machine has neither; "
            "use precision=auto (fp32 here) or precision=bf16"
        )
    if precision == "bf16" and device_type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            "precision: bf16 needs a GPU of compute capability 8.0 or later (Ampere), and this one is older; "
            "use precision=auto (fp16 here) or precision=fp32"
        )
    return precision


def _cpu_has_fp16() -> bool:
    """DeepSpeed's own rule: it refuses fp16 on any other CPU."""
    probe = getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", None)
    return probe is not None and bool(probe())


def _no_twins(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a key occur twice and keeps the last: an edit that silently does nothing."""
    result = dict(pairs)
    if len(result) != len(pairs):
        twin = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ConfigError(f"{path}: {twin}: given twice; keep one of them")
    return result


def _check_keys(path: Path, policy: dict[str, Any]) -> None:
    for key in policy:
        if key in OWNED_BY_THE_RECIPE:
            raise ConfigError(f"{path}: {key}: belongs to {OWNED_BY_THE_RECIPE[key]} in the recipe; remove it here")
        if key not in POLICY_KEYS:
            raise ConfigError(f"{path}: {key}: not a key of a ZeRO policy; {_nearest(key, POLICY_KEYS)}")
    zero = policy.get("zero_optimization")
    if not isinstance(zero, dict):
        raise ConfigError(f'{path}: zero_optimization: expected an object such as {{"stage": 1}}, found {zero!r}')
    for key in zero:
        if key not in ZERO_KEYS:
            raise ConfigError(f"{path}: zero_optimization.{key}: not supported here; {_nearest(key, ZERO_KEYS)}")
    stage = zero.get("stage")
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise ConfigError(f"{path}: zero_optimization.stage: expected 0, 1, 2 or 3, found {stage!r}")


def _nearest(key: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
