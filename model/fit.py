"""Whether weights are those of a module."""

from collections.abc import Mapping

from torch import Tensor

_NAMED = 3


def misfits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What is missing in a state, unexpected, or of another shape, the first few by name; "" where all of it fits."""
    faults = [f"missing {name}" for name in expected if name not in state]
    faults += [f"unexpected {name}" for name in state if name not in expected]
    faults += [
        f"{name} is {tuple(value.shape)}, expected {tuple(expected[name].shape)}"
        for name, value in state.items()
        if name in expected and value.shape != expected[name].shape
    ]
    more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
    return "; ".join(faults[:_NAMED]) + more
