"""The verb, and the files of each task that it scores."""

from pathlib import Path

import pytest

from tests.unit.trainer.scoring.task_files import Files, Score, nlvr2_files, snli_ve_files, vqa_files
from trainer import cli


@pytest.fixture
def score(capsys) -> Score:
    """Run the verb: exit code, lines on stdout, stderr."""

    def run(*words: object) -> tuple[int, list[str], str]:
        code = cli.main(["score", *map(str, words)])
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err

    return run


@pytest.fixture
def vqa(tmp_path: Path) -> Files:
    return vqa_files(tmp_path)


@pytest.fixture
def nlvr2(tmp_path: Path) -> Files:
    return nlvr2_files(tmp_path)


@pytest.fixture
def snli_ve(tmp_path: Path) -> Files:
    return snli_ve_files(tmp_path)
