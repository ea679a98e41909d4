"""DuoFlow from Python: load a run or an export, ask it, look where it looked, fuse images; pack, train, score.

    model = duoflow.load("exported")
    answer = model.answer("photo.jpg", "What is the person riding?")

What is named here is the public surface (docs/python.md); the packages `shards`, `model`, `trainer` and `launch` are
internal. Nothing heavy is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from duoflow.names import check_packages

check_packages()

if TYPE_CHECKING:
    from duoflow.answers import Alternative, Answer, Looked
    from duoflow.model import Model, load
    from duoflow.verbs import Scores, TrainedRun, build_shards, evaluate, train
    from shards.errors import ConfigError, DataError, UserError

__version__ = "0.1.0"

__all__ = [
    "Alternative",
    "Answer",
    "ConfigError",
    "DataError",
    "Looked",
    "Model",
    "Scores",
    "TrainedRun",
    "UserError",
    "build_shards",
    "evaluate",
    "load",
    "train",
]

_HOMES = {
    "duoflow.answers": ("Alternative", "Answer", "Looked"),
    "duoflow.model": ("Model", "load"),
    "duoflow.verbs": ("Scores", "TrainedRun", "build_shards", "evaluate", "train"),
    "shards.errors": ("ConfigError", "DataError", "UserError"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'duoflow' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
