"""One rank of `duoflow evaluate`: `-m trainer.inference.rank ASKED.json RANKS`.

ASKED.json names what is evaluated, and the file that rank 0 leaves the scores in; RANKS is the directory in which each
rank leaves its process id, and its exit code.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from shards.atomic import write_atomically
from trainer.engine.distributed import World
from trainer.engine.joint_work import work_together
from trainer.engine.process import leave
from trainer.engine.signals import StopRequest
from trainer.inference.evaluate import Evaluated, evaluate_export, evaluated_config


def main(arguments: Sequence[str]) -> int:
    """Evaluate this rank's part; returns the exit code."""
    file, ranks = arguments
    asked = json.loads(Path(file).read_text(encoding="utf-8"))
    path, scores = Path(asked.pop("path")), Path(asked.pop("scores"))
    config = evaluated_config(path, asked["pipeline"], asked["overrides"])

    def evaluate(world: World, stop: StopRequest) -> None:
        found = evaluate_export(path, **asked, world=world, stopped=lambda: stop.requested)
        if world.rank == 0:
            write_atomically(scores, json.dumps(as_json(found)).encode())  # a loss may be NaN

    return work_together(config.engine, Path(ranks), evaluate)


def as_json(found: Evaluated) -> dict[str, object]:
    """What travels from a rank to the command that launched it."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in found._asdict().items()}


def from_json(text: str) -> Evaluated:
    """The inverse of `as_json`."""
    found = Evaluated(**json.loads(text))
    return found._replace(
        predictions=None if found.predictions is None else Path(found.predictions),
        table=None if found.table is None else Path(found.table),
    )


if __name__ == "__main__":
    leave(main([word for word in sys.argv[1:] if not word.startswith("--local_rank")]))
