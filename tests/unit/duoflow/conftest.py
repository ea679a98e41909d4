"""A small export and photos, for all tests of the library."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.models import tiny_checkpoints
from tests.runs import Project
from tests.unit.trainer.inference.test_answer import finished_run


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.write(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def run(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a fusion over EfficientSAM whole, so that there are masks."""
    home = tmp_path_factory.mktemp("runs")
    sam = tiny_checkpoints(home / "towers")["sam"]
    second = (f"model.efficient_sam.checkpoint={sam}", "model.freeze=[second_stream]")
    sizes = [f"model.efficient_sam.{key}=null" for key in ("image_size", "patch_size", "width", "depth", "heads")]
    return finished_run(project, home / "run", *second, *sizes, "model.efficient_sam.neck_width=null")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three, each of a size of its own."""
    generator, paths = np.random.default_rng(0), []
    for number in range(3):
        colors = generator.integers(0, 256, (40 + number, 60, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(colors).save(paths[-1])
    return paths
