"""What decides on the bytes that a node makes: the digest of this package's code, versions of Python and of libraries.

The function travels to nodes by value, because a node may lack this package: the standard library is all it stands on.
"""

import hashlib
import importlib.metadata
import importlib.util
import platform
from collections.abc import Sequence
from pathlib import Path

PACKAGE = "shards"
LIBRARIES = ("msgspec", "numpy", "pillow")


def code_facts(package: str, libraries: Sequence[str]) -> dict[str, str]:
    """Name of a fact to its value; what is not there is `not installed`."""
    none = "not installed"
    facts = {"duoflow": none, "python": ".".join(platform.python_version_tuple()[:2])}
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        digest = hashlib.sha256()
        for path in sorted(Path(folder).rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        facts["duoflow"] = f"code {digest.hexdigest()[:12]}"
    for library in libraries:
        try:
            facts[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            facts[library] = none
    return facts
