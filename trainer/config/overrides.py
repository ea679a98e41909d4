"""Dotted overrides: `optim.lr=3e-5` on a command line changes one value of a recipe."""

import copy
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from shards.errors import ConfigError
from trainer.config.yaml_text import parse_yaml

_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


class Override(NamedTuple):
    """One value for one dotted key, and the text that said so."""

    text: str
    key: str
    value: Any


def parse_override(text: str) -> Override:
    """Read `a.b=value`; the value is YAML: a string, a number, true, false, null or a [list].

    Raises:
        ConfigError: there is no `=`, no key or no value, or the value is a section.
    """
    key, equals, value_text = text.partition("=")
    if not equals or not _KEY.fullmatch(key):
        raise ConfigError(f"{text}: not an override; expected key=value with a dotted key, such as optim.lr=3e-5")
    if not value_text.strip():
        raise ConfigError(f"{text}: {key}: no value behind the =; write null where a value may be left out")
    value = parse_yaml(value_text, text)
    if isinstance(value, dict):
        raise ConfigError(f"{text}: {key}: expected a single value, got a section; set its keys one by one")
    return Override(text, key, value)


def apply_overrides(tree: dict[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """A copy of a recipe's tree with the overridden values; of two for the same key the later one stands.

    Raises:
        ConfigError: an override goes through a key that the recipe gives a plain value.
    """
    changed = copy.deepcopy(tree)
    for override in overrides:
        *sections, name = override.key.split(".")
        node = changed
        for depth, section in enumerate(sections, start=1):
            if node.get(section) is None:
                node[section] = {}
            node = node[section]
            if not isinstance(node, dict):
                path = ".".join(sections[:depth])
                raise ConfigError(
                    f"{override.text}: {path}: is a value in the recipe, not a section with keys under it"
                )
        node[name] = override.value
    return changed
