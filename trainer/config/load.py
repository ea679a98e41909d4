"""Recipe, then overrides, checked as a whole: the only way to a configuration."""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.config import text_towers, untrained_towers
from model.parts import PARTS
from shards.errors import ConfigError, UserError
from shards.tasks import TASKS
from trainer.config.checks import cross_faults
from trainer.config.exported import EXPORT_FILE, RECIPE, model_in
from trainer.config.faults import fault_line, value_faults
from trainer.config.overrides import Override, apply_overrides, parse_override
from trainer.config.run_paths import find_from_anywhere
from trainer.config.schema import REPOSITORY, RunConfig
from trainer.config.yaml_text import format_value, format_yaml, parse_yaml

_WHOLES = ("vlm", "reader", "retrieval")
"""Keys of the model section that name a whole model, and sections that say how it is used."""
_DATA_OF_MODEL = ("image_size", "max_question_tokens", "max_answer_tokens")
"""Keys of the data section that a model is trained for."""


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a recipe, or of the `config.yaml` of a run directory, with `a.b=value` overrides.

    Raises:
        ConfigError: one line per fault, each with its file or override, the dotted key and the way out.
    """
    return _checked(Path(recipe), _read_recipe(Path(recipe), may_be_empty=bool(overrides)), overrides)


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that a run was started with, from its `config.yaml`, with overrides. Relative paths in it are
    found from any working directory.

    Raises:
        ConfigError: as `load_config`.
    """
    tree = _read_recipe(path)
    if isinstance(tree.get("model"), dict):
        tree["model"].setdefault("text_start", "cls")  # what every run did before there was the key
    find_from_anywhere(path, tree)
    return _checked(path, tree, overrides)


def dump_config(config: RunConfig) -> str:
    """YAML of the whole tree, defaults included, that loads to the same configuration."""
    return format_yaml(config.model_dump(mode="json"))


def _checked(recipe: Path, tree: dict[str, Any], overrides: Sequence[str]) -> RunConfig:
    parsed = [parse_override(text) for text in overrides]
    tree = apply_overrides(tree, parsed)
    _take_from_export(tree)
    _name_after(recipe, tree)
    _weigh_as_task(tree)
    _see_from_scratch(tree)
    source_of = _source_of(str(recipe), parsed)
    try:
        # JSON is what pydantic's strict mode was made for: lists are tuples there, and true is not 1.
        config = _without_untrained_rest(RunConfig.model_validate_json(json.dumps(tree), strict=True), tree)
        faults = cross_faults(config)
    except ValidationError as error:
        faults = value_faults(error, RunConfig)
    if faults:
        raise ConfigError("\n".join(fault_line(fault, source_of) for fault in faults))
    return config


def _read_recipe(recipe: Path, *, may_be_empty: bool = False) -> dict[str, Any]:
    try:
        text = recipe.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{recipe}: no such file{_near(recipe)}; expected a recipe in YAML, such as those in recipes/"
        ) from None
    except OSError as error:
        raise ConfigError(f"{recipe}: cannot be read: {error.strerror}; expected a recipe in YAML") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{recipe}: not UTF-8 text at byte {error.start}; expected a recipe in YAML") from None
    tree = parse_yaml(text, str(recipe))
    if tree is None and not may_be_empty:
        raise ConfigError(
            f"{recipe}: expected sections with keys (batch: ...), got nothing; a line is enough: data: {{train: DIR}}"
        )
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{recipe}: expected sections with keys (batch: ...), got {format_value(tree)}")
    return tree or {}


def _near(recipe: Path) -> str:
    """The nearest name of a recipe beside one that is not there, or among ours."""
    places = [recipe.parent, Path("recipes"), REPOSITORY / "recipes"]
    there = {path.name: path for place in reversed(places) for path in place.glob("*.yaml")}
    near = difflib.get_close_matches(f"{recipe.stem}.yaml", there, n=1)
    return f" (did you mean {there[near[0]]}?)" if near else ""


def _take_from_export(tree: dict[str, Any]) -> None:
    """Give a recipe that starts from an export what it leaves out of the model, towers where the export has them.

    Only where both are of one kind: a fusion, a vision-language model, a reader or a retrieval.
    """
    source = tree.get("initialize_from")
    if not isinstance(source, str) or not (Path(source).expanduser() / EXPORT_FILE).is_file():
        return
    export = Path(source).expanduser()
    try:
        exported = load_run_config(export / RECIPE)
        model = model_in(exported.model, export)
    except UserError as error:
        raise ConfigError(f"initialize_from: {error}") from None
    own = tree.get("model", {})
    kinds = [{name for name in _WHOLES if named.get(name) is not None} for named in (own, model.model_dump())]
    if not isinstance(own, dict) or (kinds[0] and kinds[0] != kinds[1]):
        return
    brought = exported.model_copy(update={"model": model}).model_dump(mode="json")
    brought["data"] = {key: brought["data"][key] for key in _DATA_OF_MODEL}
    sections = {"task", "data", "model", *_WHOLES}
    if tree.get("task", exported.task) == exported.task:
        sections |= {"losses"}
    _fill(tree, {key: value for key, value in brought.items() if key in sections})


def _fill(tree: dict[str, Any], brought: Mapping[str, Any]) -> None:
    """Put what a tree does not have into it; what is there stays."""
    for key, value in brought.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _fill(tree[key], value)
        else:
            tree.setdefault(key, value)


def _name_after(recipe: Path, tree: dict[str, Any]) -> None:
    """Give the run the recipe's name if it has none. A `run` that is no section is left for the validation to name."""
    run = tree.setdefault("run", {})
    if isinstance(run, dict) and run.get("name") is None:
        run["name"] = recipe.stem


def _weigh_as_task(tree: dict[str, Any]) -> None:
    """Give the parts of the loss that a recipe leaves out the weights of its task."""
    name = tree.get("task", "gqa")
    if not isinstance(name, str) or name not in TASKS:
        return  # left for the checks to name
    losses = tree.setdefault("losses", {})
    model = tree.get("model")
    writes = isinstance(model, dict) and model.get("vlm") is not None  # a vision-language model writes, and no more
    if isinstance(losses, dict):
        for part in PARTS:
            losses.setdefault(part, TASKS[name].losses.get(part, 0.0) if part == "answer" or not writes else 0.0)


_SEES = frozenset(
    ("freeze", "vision", "second_stream", "second_vision", "efficient_sam", "guidance", "vlm", "reader", "retrieval")
)
"""Keys of the model that say how it sees, and what of that is trained; a recipe without any leaves it to us."""


def _see_from_scratch(tree: dict[str, Any]) -> None:
    """Leave a second stream out of a recipe that says nothing of how it sees: EfficientSAM without weights would be
    1024 pixels of random ones."""
    model = tree.setdefault("model", {})
    if isinstance(model, dict) and not _SEES & model.keys():
        model["second_stream"] = "none"


def _without_untrained_rest(config: RunConfig, tree: dict[str, Any]) -> RunConfig:
    """The configuration, with what starts from random weights trained where the recipe does not say what is frozen."""
    model = config.model
    whole = model.vlm or model.reader or model.retrieval
    if "freeze" in tree["model"] or whole is not None or config.task not in TASKS:
        return config
    untrained = untrained_towers(model, text_towers(TASKS[config.task], config.losses))
    freeze = tuple(part for part in model.freeze if part not in untrained)
    return config.model_copy(update={"model": model.model_copy(update={"freeze": freeze})})


def _source_of(recipe: str, overrides: Sequence[Override]) -> Callable[[str], str]:
    """Which override (the last one) or else which file set a key, or the values under it."""

    def source_of(key: str) -> str:
        for override in reversed(overrides):
            if f"{override.key}.".startswith(f"{key}.") or key.startswith((f"{override.key}.", f"{override.key}[")):
                return override.text
        return recipe

    return source_of
