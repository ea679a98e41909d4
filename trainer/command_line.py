"""Every screen of the command: mistakes in one line with the nearest name, help with defaults and examples."""

import argparse
import difflib
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from shards.errors import UserError

SPLITS = ("train", "val", "testdev", "test", "challenge")
"""What `--split` names: keys of a recipe's `data`."""

_EXAMPLES = "examples:"
_NO_DEFAULT = (None, False, argparse.SUPPRESS)


def nearest(word: str, known: Collection[str]) -> str:
    """`; did you mean X?`, or nothing where no known name is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def with_default(action: argparse.Action) -> str:
    """The help of an argument as argparse expands it, with its default where the text does not name it."""
    text, default = action.help or "", action.default
    if default in _NO_DEFAULT or default in ([], ()) or "default" in text or not action.option_strings:
        return text
    shown = ",".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
    return f"{text} (default: {shown.replace('%', '%%')})"


class Parser(argparse.ArgumentParser):
    """Mistakes are `UserError`s of one line, options are never guessed from their beginning, and the lines of an epilog
    are commands to type, which help shows as they are."""

    def __init__(self, *, epilog: str | None = None, **options: Any) -> None:
        self.examples = () if epilog is None else tuple(epilog.splitlines())
        if self.examples:
            epilog = "\n".join([_EXAMPLES, *(f"  {line}" for line in self.examples)])
        super().__init__(**{**options, "epilog": epilog, "allow_abbrev": False, "formatter_class": _Formatter})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse does; the namespace's `parser` is the one of the innermost verb."""
        found, rest = super().parse_known_args(args, namespace)
        if "parser" not in found:
            found.parser = self
        return found, rest

    def refuse_unknown(self, word: str) -> NoReturn:
        """Raises:
        UserError: an argument that nobody takes, with the nearest option.
        """
        self.error(f"unknown argument {word}{nearest(word.partition('=')[0], self._option_string_actions)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        hint = nearest(str(value), names)
        known = ", ".join(map(repr, names))
        raise argparse.ArgumentError(action, f"invalid choice: {value!r}{hint} (choose from {known})")


class _Formatter(argparse.HelpFormatter):
    """Names the default of every option that has one, and leaves the lines of examples alone."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return with_default(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(_EXAMPLES):
            return text
        return super()._fill_text(text, width, indent)
