"""Relative paths of a run, found from wherever it is looked at: they were written where the run was started."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.remote.address import is_url

_PATHS = (
    *(f"data.{name}" for name in ("train", "val", "testdev", "test", "challenge", "retrieved")),
    *("answers.list", "answers.start_from", "answers.start_list", "engine.policy", "initialize_from"),
    *(f"model.{name}" for name in ("vision", "match", "answer", "second_vision", "vlm", "retrieval")),
    *("model.efficient_sam.checkpoint", "pnp.captioner", "pnp.reader"),
)
"""Dotted keys that hold a path, or may: a hub id stays one where no directory is called so."""


def started_in(config: Path, tree: Mapping[str, Any]) -> Path | None:
    """The directory in which a run was started, by where it lies and what its recipe calls that.

    None where `run.directory` is absolute, or the run was moved.
    """
    run = tree.get("run")
    named = run.get("directory") if isinstance(run, dict) else None
    written = Path(named if isinstance(named, str) else "runs")
    if written.is_absolute() or ".." in written.parts:
        return None
    lies = config.resolve().parent.parent
    above = len(lies.parts) - len(written.parts)
    return Path(*lies.parts[:above]) if above > 0 and lies.parts[above:] == written.parts else None


def find_from_anywhere(config: Path, tree: dict[str, Any]) -> None:
    """Change relative paths that lead nowhere from the working directory, and somewhere from where the run was started,
    into absolute ones.

    Args:
        config: the run's config.yaml.
        tree: what it holds.
    """
    start = started_in(config, tree)
    if start is None or start == Path.cwd():
        return
    for key in _PATHS:
        *sections, name = key.split(".")
        section: Any = tree
        for part in sections:
            section = section.get(part) if isinstance(section, dict) else None
        value = section.get(name) if isinstance(section, dict) else None
        if isinstance(value, str) and _leads_there_alone(value, start):
            section[name] = str(start / value)


def _leads_there_alone(value: str, start: Path) -> bool:
    path = Path(value)
    if path.is_absolute() or value.startswith("~") or is_url(value):
        return False
    return not path.exists() and (start / path).exists()
