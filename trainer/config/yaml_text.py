"""YAML as recipes use it: JSON's values alone, no key twice, and `1e-4` is a number.

PyYAML follows YAML 1.1, where `1e-4` is a string, `no` is false, `1:30` is 90 and a repeated key silently wins. Here
the core schema of YAML 1.2 holds: what is not null, true, false or a number is a string.
"""

import re
from typing import Any

import yaml

from shards.errors import ConfigError

_STRING = "tag:yaml.org,2002:str"
_NUMBERS_AND_WORDS = {
    "tag:yaml.org,2002:null": re.compile(r"null|Null|NULL|~|"),
    "tag:yaml.org,2002:bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "tag:yaml.org,2002:int": re.compile(r"[-+]?[0-9]+"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
}


class _CoreResolver:
    """Which plain scalars are not strings; loader and dumper share it, so what is written is read back."""

    def resolve(self, kind: type, value: str, implicit: tuple[bool, bool]) -> str:
        if kind is not yaml.ScalarNode or not implicit[0]:
            return super().resolve(kind, value, implicit)  # type: ignore[misc] - PyYAML's Resolver comes next
        return next((tag for tag, pattern in _NUMBERS_AND_WORDS.items() if pattern.fullmatch(value)), _STRING)


class _Loader(_CoreResolver, yaml.SafeLoader):
    """Reads no tags, no aliases and no repeated keys; keys are strings."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            problem = "aliases (*name) and tags (!name) are not read; write plain values"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        first_line: dict[str, int] = {}
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="expected a key", problem_mark=key.start_mark)
            if key.value in mapping:
                problem = f"key {key.value!r} is already in line {first_line[key.value]}; keep one of them"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            first_line[key.value] = key.start_mark.line + 1
            mapping[key.value] = self.construct_object(value, deep=deep)
        return mapping


class _Dumper(_CoreResolver, yaml.SafeDumper):
    """Quotes what the loader or a YAML 1.1 reader would not take for a string; lists stay on one line."""

    def resolve(self, kind: type, value: str, implicit: tuple[bool, bool]) -> str:
        tag = super().resolve(kind, value, implicit)
        return yaml.SafeDumper.resolve(self, kind, value, implicit) if tag == _STRING else tag

    def represent_list(self, data: list[Any]) -> yaml.Node:
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


_Dumper.add_representer(list, _Dumper.represent_list)


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text: dicts with string keys, lists, strings, numbers, booleans, None.

    Args:
        text: a document, or the value of an override.
        source: what an error calls it, such as the file name.

    Raises:
        ConfigError: it is not YAML, repeats a key, or uses tags or aliases.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark and "\n" in text else ""
        problem = " ".join(str(error.problem or error.context).split())
        raise ConfigError(f"{source}{place}: cannot be read as YAML: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: cannot be read as YAML: {' '.join(str(error).split())}") from None


def format_yaml(tree: dict[str, Any]) -> str:
    """YAML that `parse_yaml` reads back to the same tree: keys in their order, lists on one line.

    What is not ASCII is escaped: unescaped, PyYAML writes some line breaks of Unicode in a way that it reads as blanks.
    """
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=110)


def format_value(value: Any) -> str:
    """A value on one line, as a person would write it into an override."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=2**30)
    return text.removesuffix("\n").removesuffix("\n...")
