"""Every module imports what it names: also those that only a command line or another process starts."""

import importlib
import pkgutil

import pytest

from shards.errors import UserError

PACKAGES = ("duoflow", "shards", "model", "trainer", "launch", "benchmarks")


def modules() -> list[str]:
    found = []
    for package in PACKAGES:
        home = importlib.import_module(package).__path__
        found += [module.name for module in pkgutil.walk_packages(home, f"{package}.") if not module.ispkg]
    return found


@pytest.mark.parametrize("name", modules())
def test_it_imports(name: str):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name.partition(".")[0] in PACKAGES:
            raise
        pytest.skip(f"{missing.name} belongs to an extra that is not installed")
    except UserError as said:
        if "is not installed; pip install" not in str(said):
            raise
        pytest.skip(str(said))
