"""Whether the packages behind `duoflow` are its own: their names are common, and another distribution may have them.

The standard library alone, and nothing is imported: this runs before anything else does.
"""

import sys
from importlib import metadata, util
from pathlib import Path

PACKAGES = ("shards", "model", "trainer", "launch")
MARK = 'DISTRIBUTION = "duoflow"'
"""In the `__init__.py` of each."""


def check_packages() -> None:
    """Refuse to go on where one of the names leads elsewhere.

    Raises:
        ImportError: in one line: which name, where it leads, and the way out.
    """
    home = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        place = _place(name)
        if place is None:
            raise ImportError(f"duoflow: its package {name} is not installed beside {home}; install duoflow again")
        if place != home / name / "__init__.py" or MARK not in place.read_text(encoding="utf-8", errors="replace"):
            raise ImportError(
                f"duoflow: the name {name} leads to {place}{_owner(name)}, which is not DuoFlow's; give duoflow an "
                f"environment of its own (`uv tool install duoflow`, a new venv), or start Python where no {name} lies"
            )


def _place(name: str) -> Path | None:
    """The file behind a package, or its directory where it has none; None where there is no such package."""
    module = sys.modules.get(name)
    spec = module.__spec__ if module is not None else util.find_spec(name)
    if spec is None:
        file = getattr(module, "__file__", None)
        return None if file is None else Path(file).resolve()
    if spec.origin not in (None, "namespace", "built-in"):
        return Path(spec.origin).resolve()
    return Path(next(iter(spec.submodule_search_locations or ["(no place)"]))).resolve()


def _owner(name: str) -> str:
    owners = [owner for owner in metadata.packages_distributions().get(name, []) if owner != "duoflow"]
    return f" (of {', '.join(sorted(set(owners)))})" if owners else ""
