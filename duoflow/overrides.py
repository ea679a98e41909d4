"""Values of a recipe from Python, as the command line has them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Overrides = Mapping[str, Any] | Sequence[str]
"""`{"optim.lr": 3e-5}`, or `["optim.lr=3e-5"]` as the command line has it."""


def as_overrides(given: Overrides) -> list[str]:
    """`key=value` texts."""
    if not isinstance(given, Mapping):
        return list(given)
    return [f"{key}={json.dumps(str(value) if isinstance(value, Path) else value)}" for key, value in given.items()]
