"""The packages that are installed, against the lower bounds that setup.py names."""

import ast
import re
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

from trainer.config.schema import REPOSITORY
from trainer.doctor.table import Row

DISTRIBUTION = "duoflow"
_BOUND = re.compile(r"\s*([A-Za-z0-9._-]+)\s*>=\s*([0-9.]+)\s*")


def package_rows(
    bounds: Mapping[str, str] | None = None, version_of: Callable[[str], str | None] | None = None
) -> list[Row]:
    """A row for each required package.

    Args:
        bounds: package -> lowest version; by default those of this project.
        version_of: the installed version of a package, None where there is none.
    """
    bounds, version_of = lower_bounds() if bounds is None else bounds, version_of or installed_version
    return [_row(name, bound, version_of(name)) for name, bound in sorted(bounds.items())]


def installed_version(package: str) -> str | None:
    """The version that is installed, None if none is."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def lower_bounds(setup: Path = REPOSITORY / "setup.py") -> dict[str, str]:
    """Package -> lowest version: from the checkout's setup.py, or else from what was installed with the project."""
    if setup.is_file():
        tree = ast.parse(setup.read_text(encoding="utf-8"))
        found = (node.value for node in tree.body if isinstance(node, ast.Assign) and _names_requirements(node))
        requirements = [entry for value in found for entry in ast.literal_eval(value)]
    else:
        try:
            listed = metadata.requires(DISTRIBUTION) or []
        except metadata.PackageNotFoundError:
            listed = []
        requirements = [entry for entry in listed if "extra" not in entry]
    return {match[1].lower(): match[2] for match in map(_BOUND.fullmatch, requirements) if match is not None}


def is_at_least(version: str, bound: str) -> bool:
    """Whether a version such as `2.15.0+cu130` or `5.3.0rc1` reaches a bound; only the leading numbers count."""
    found, wanted = _numbers(version), _numbers(bound)
    length = max(len(found), len(wanted))
    return found + [0] * (length - len(found)) >= wanted + [0] * (length - len(wanted))


def _row(name: str, bound: str, version: str | None) -> Row:
    if version is not None and is_at_least(version, bound):
        return Row(name, f"{version} (at least {bound})")
    found = "not installed" if version is None else f"{version} is too old"
    # DeepSpeed's installation would otherwise compile operators that DuoFlow does not use.
    environment = "DS_BUILD_OPS=0 " if name == "deepspeed" else ""
    command = f"{environment}pip install -U '{name}>={bound}'"
    return Row(name, f"{found} (at least {bound})", f"{found}; run `{command}`", (command,))


def _names_requirements(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "REQUIREMENTS" for target in node.targets)


def _numbers(version: str) -> list[int]:
    leading = re.match(r"\d+(?:\.\d+)*", version)
    return [int(number) for number in leading[0].split(".")] if leading else []
