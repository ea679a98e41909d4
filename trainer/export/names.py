"""The tensors of an objective by name, as the files of an export have them."""

from collections.abc import Mapping

from torch import Tensor

from model.objective import Objective


def all_names(objective: Objective, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under every name that the module has for them: shared and tied parameters have several."""
    canonical = {parameter: name for name, parameter in objective.named_parameters()}
    names = objective.named_parameters(remove_duplicate=False)
    return {name: parameters[canonical[parameter]] for name, parameter in names}


def below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin so, by what follows."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
