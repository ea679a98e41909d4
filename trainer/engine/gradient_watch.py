"""Looks at the first optimizer steps for trainable parameters that no gradient reaches.

AdamW decays such a parameter step by step and nothing else ever happens to it, which no loss curve shows.
"""

from collections.abc import Mapping

import torch
from torch import nn

from shards.errors import ConfigError

_NONE, _ZERO, _SOME = 0, 1, 2
_NAMED = 5
"""Parameters named in the message; the rest is counted."""


class GradientWatch:
    """Hooks every parameter until `patience` optimizer steps have been applied.

    Args:
        parameters: trainable parameters by name.
        patience: 2 where a factor starts at zero (LoRA's B, a gate) and holds back the gradient of its partner for one
            step; otherwise 1.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, patience: int) -> None:
        assert patience >= 1, patience
        self._names = list(parameters)
        self._remaining = self._patience = patience
        self._seen = [torch.tensor(_NONE)] * len(self._names)
        self._hooks = [parameter.register_hook(self._hook(i)) for i, parameter in enumerate(parameters.values())]

    @property
    def watching(self) -> bool:
        """Whether steps are still being looked at."""
        return self._remaining > 0

    def step_applied(self) -> torch.Tensor | None:
        """Count an optimizer step; after the last one stop watching and return what was seen, for `report`.

        Returns:
            (parameters,) int64 on the CPU, to be reduced by maximum over ranks: a part of the model may have had no
            work on this rank.
        """
        self._remaining -= 1
        if self._remaining > 0:
            return None
        for hook in self._hooks:
            hook.remove()
        return torch.stack([level.cpu() for level in self._seen])

    def report(self, seen: torch.Tensor) -> None:
        """Judge what all ranks saw.

        Raises:
            ConfigError: naming the parameters that received no gradient, or only zeros.
        """
        missing = [name for name, level in zip(self._names, seen.tolist(), strict=True) if level < _SOME]
        if not missing:
            return
        steps = f"the first {self._patience} optimizer step{'s' if self._patience > 1 else ''}"
        rest = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        unused = sum(level == _NONE for level in seen.tolist())
        if len(missing) == len(self._names) and not unused:
            raise ConfigError(
                f"no gradient reached any parameter in {steps}: no question there has an answer (`duoflow shards info` "
                "counts those that have), or the weights of losses are next to nothing"
            )
        raise ConfigError(
            f"no gradient reached {', '.join(missing[:_NAMED])}{rest} in {steps} ({unused} take no part in the loss, "
            f"{len(missing) - unused} only got zeros); every trainable parameter must matter to a loss of the recipe: "
            "freeze it, or give its loss a weight"
        )

    def _hook(self, index: int):
        def look(gradient: torch.Tensor) -> None:
            # Stays on the device: looking at the value here would wait for it in the middle of the backward pass.
            level = gradient.detach().ne(0).any().long() + _ZERO
            self._seen[index] = torch.maximum(self._seen[index].to(level.device), level)

        return look
