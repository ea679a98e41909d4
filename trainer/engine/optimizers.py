"""Which of timm's optimizers a run may take, under which ZeRO stage, and how one is built.

ZeRO 1 to 3 hand an optimizer flat pieces of many parameters at once, so only optimizers that treat every element by
itself mean there what their papers say; a test finds out which do. At stage 0 parameters keep their shapes.
"""

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shards.errors import ConfigError

if TYPE_CHECKING:
    import torch  # otherwise only where it is needed: the checks of a recipe import this file

DEFAULT = "adamw"
"""torch.optim.AdamW (Loshchilov and Hutter, arXiv 1711.05101): the only one that is not built by timm."""

ELEMENT_WISE = (
    *("adamw", "adabelief", "adadelta", "adam", "adamax", "adamc", "adamwlegacy", "adan", "adanw"),
    *("adopt", "adoptc", "adoptw", "laprop", "lapropc", "lion", "lionc", "madgrad", "madgradw", "momentum"),
    *("nadam", "nadamc", "nadamlegacy", "nadamw", "nesterov", "nesterovw", "radabelief", "radam", "radamlegacy"),
    *("radamw", "rmsprop", "rmsproptf", "rmsproptfc", "rmsproptfw", "sgd", "sgdc", "sgdw"),
)
"""One step on a concatenation equals the steps on its parts."""

_CAUTION = "its cautious mask is averaged over each parameter"
_NORMS = "it scales the update of each parameter by its norm"
_FACTORS = "it factors the second moment of each matrix"
_PROJECTS = "it projects the update of each parameter"
_ONE_MOMENT = "it keeps one second moment for each parameter"
_MATRICES = "it makes the update of each matrix orthogonal"
WHOLE_PARAMETERS: dict[str, str] = {
    **dict.fromkeys(("adafactor", "adafactorbv", "adafactorbvc"), _FACTORS),
    **dict.fromkeys(("adamp", "sgdp"), _PROJECTS),
    **dict.fromkeys(("adamuon", "muon", "nadamuon", "nmuon"), _MATRICES),
    **dict.fromkeys(("lamb", "lambc", "lambcd", "lambcw", "lambw", "lars", "larc", "nlars", "nlarc"), _NORMS),
    **dict.fromkeys(("novograd", "novogradc", "novogradw"), _ONE_MOMENT),
    "mars": "it clips a correction by the norm of each parameter",
    **dict.fromkeys(("cadafactor", "cadafactorbv", "cadafactorbvc", "cadamc", "cadamp", "cadamw"), _CAUTION),
    **dict.fromkeys(("cadan", "cadanw", "cadopt", "cadoptc", "cadoptw", "clamb", "clambw", "claprop"), _CAUTION),
    **dict.fromkeys(("clion", "clionc", "cmars", "cnadamc", "cnadamw", "crmsproptf"), _CAUTION),
    **dict.fromkeys(("csgdc", "csgdp", "csgdw"), _CAUTION),
}
"""Offered at stage 0 alone, each with what keeps it from flat pieces."""

COUNTS_BY_GROUP = ("adan", "adanw")
"""Not under ZeRO-3, which takes one step of the whole optimizer for every sub-group: the count would run ahead."""

_WHOLE_NEAREST = {"lamb": "adamw", "lar": "sgdw", "nlar": "sgdw", "novograd": "adamw", "mars": "nadamw"} | {
    "muon": "adamw",
    "nmuon": "adamw",
    "nadamuon": "nadamw",
    "adamuon": "adamw",
    "adafactor": "adamw",
    "adamp": "adamw",
    "sgdp": "sgd",
}
"""By how a name begins, without the c of the cautious."""

_WITHOUT_BETAS = frozenset(
    name
    for name in (*ELEMENT_WISE, *WHOLE_PARAMETERS)
    if any(part in name for part in ("adadelta", "adafactorbv", "madgrad", "momentum", "nesterov", "rmsprop", "sgd"))
    or name in ("lars", "larc", "nlars", "nlarc")
)
_THREE_BETAS = ("adan", "adanw", "cadan", "cadanw")
_WITHOUT_EPS = frozenset(
    ("lion", "lionc", "clion", "clionc", "momentum", "nesterov", "nesterovw", "sgd", "sgdc", "sgdw", "csgdc", "csgdw")
)
_OWNED = {"lr": "optim.lr", "weight_decay": "optim.weight_decay", "betas": "optim.betas", "eps": "optim.eps"}
_NOT_OFFERED = frozenset(
    ("params", "maximize", "capturable", "differentiable", "fused", "verbose", "momentum_dtype", "adamw_lr")
)
_BY_PARAMETER = {"caution": _CAUTION, "clipping_threshold": "it clips each parameter by its norm"}
"""Options that take an element-wise optimizer's meaning under ZeRO."""


@dataclass(frozen=True, kw_only=True)
class OptimizerChoice:
    """An optimizer by timm's name, and its arguments; None leaves them to the optimizer."""

    name: str = DEFAULT
    betas: Sequence[float] | None = None
    eps: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def name_fault(name: str) -> str | None:
    """What keeps an optimizer from every stage, with the nearest one that is offered; None if nothing does."""
    if name in ELEMENT_WISE or name in WHOLE_PARAMETERS:
        return None
    if name.startswith("fused"):
        return f"{name} needs the package apex; take {_nearest(name.removeprefix('fused'))}"
    if name.startswith("bnb"):
        plain = name.removeprefix("bnb").removesuffix("8bit")
        return f"{name} needs the package bitsandbytes; take {_nearest(plain)}"
    if name.startswith("lookahead_"):
        return f"{name} keeps slow weights that no checkpoint holds; take {_nearest(name.removeprefix('lookahead_'))}"
    if name == "adahessian":
        return "adahessian needs second derivatives, and DeepSpeed's backward pass gives none; take adamw"
    if name == "adagrad":
        return "adagrad makes its state before DeepSpeed moves the parameters away from it; take adadelta or rmsproptf"
    if name.startswith("kron"):
        return f"{name} keeps lists of preconditioners and draws of its own, which no checkpoint holds; take adamw"
    near = difflib.get_close_matches(name.lower(), (*ELEMENT_WISE, *WHOLE_PARAMETERS), n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"expected an optimizer of timm's that docs/optim.md lists, such as adamw, adopt or lion{hint}, got {name}"


def check_stage(choice: OptimizerChoice, stage: int) -> None:
    """Whether an optimizer keeps its meaning under a ZeRO stage.

    Raises:
        ConfigError: it does not; the message says why and names the nearest that does.
    """
    if stage == 0:
        return
    flat = f"and ZeRO-{stage} (engine.policy) hands it flat pieces of many"
    if choice.name in WHOLE_PARAMETERS:
        reason, nearest = WHOLE_PARAMETERS[choice.name], _nearest_flat(choice.name, stage)
        raise ConfigError(
            f"optim.name: {choice.name}: {reason}, {flat}; take {nearest}, or engine.policy=ds_configs/zero0.json"
        )
    if stage == 3 and choice.name in COUNTS_BY_GROUP:
        raise ConfigError(
            f"optim.name: {choice.name}: it counts its steps by parameter group, and ZeRO-3 (engine.policy) takes one "
            "for each of its pieces; take adopt, or engine.policy=ds_configs/zero2.json"
        )
    for option, reason in _BY_PARAMETER.items():
        if choice.options.get(option):
            raise ConfigError(
                f"optim.options.{option}: {reason}, {flat}; leave it out, or set engine.policy=ds_configs/zero0.json"
            )


def argument_faults(choice: OptimizerChoice) -> Iterator[tuple[str, str]]:
    """(key below `optim`, what is wrong) of every argument that the optimizer does not take."""
    if choice.betas is not None:
        if choice.name in _WITHOUT_BETAS:
            yield "betas", f"{choice.name} takes none; remove it"
        else:
            count = 3 if choice.name in _THREE_BETAS else 2
            if len(choice.betas) != count:
                yield "betas", f"expected {count} numbers for {choice.name}, got {len(choice.betas)}"
    if choice.eps is not None and choice.name in _WITHOUT_EPS:
        yield "eps", f"{choice.name} takes none; remove it"
    if choice.options:
        yield from _option_faults(choice)


def build_optimizer(
    choice: OptimizerChoice, groups: Sequence[dict[str, Any]], learning_rate: float
) -> "torch.optim.Optimizer":
    """The optimizer over parameter groups that carry their own weight decay.

    Args:
        learning_rate: the highest one of the run, which the corrected weight decay of some optimizers is a part of.
    """
    given = {"betas": tuple(choice.betas) if choice.betas is not None else None, "eps": choice.eps}
    arguments = {key: value for key, value in given.items() if value is not None} | dict(choice.options)
    if choice.name == DEFAULT:
        import torch

        return torch.optim.AdamW(list(groups), lr=learning_rate, **arguments)

    from timm.optim import create_optimizer_v2  # imports every model of timm: seconds

    optimizer = create_optimizer_v2(list(groups), choice.name, lr=learning_rate, **arguments)
    if WHOLE_PARAMETERS.get(choice.name) == _MATRICES:
        from trainer.engine import orthogonal

        if orthogonal.slow_on_this_processor():
            orthogonal.step_in_float32(optimizer)
    return optimizer


def _option_faults(choice: OptimizerChoice) -> Iterator[tuple[str, str]]:
    known = _known_options(choice.name)
    for option in choice.options:
        key = f"options.{option}"
        if option in _OWNED:
            yield key, f"is {_OWNED[option]}; set it there"
        elif option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'no options'}"
            yield key, f"{choice.name} has no such option; {hint}"
    if set(choice.options) <= set(known):
        import torch

        try:
            build_optimizer(choice, [{"params": [torch.nn.Parameter(torch.zeros(1))]}], 1e-3)
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            yield "options", f"{choice.name} does not take these values: {error}"


def _known_options(name: str) -> list[str]:
    from timm.optim import get_optimizer_class

    signature = inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters
    return [option for option in signature if option not in _NOT_OFFERED and option not in _OWNED]


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, (*ELEMENT_WISE, *WHOLE_PARAMETERS), n=1, cutoff=0.5)
    return near[0] if near else DEFAULT


def _nearest_flat(name: str, stage: int) -> str:
    """The element-wise optimizer that is nearest to one that is not: without its caution, or of its family."""
    plain = name.removeprefix("c") if WHOLE_PARAMETERS[name] == _CAUTION else name
    if plain in ELEMENT_WISE:
        return "adopt" if stage == 3 and plain in COUNTS_BY_GROUP else plain
    return next(nearest for start, nearest in _WHOLE_NEAREST.items() if plain.startswith(start))
