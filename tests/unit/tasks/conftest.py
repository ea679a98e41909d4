"""Shards of every task and the models over them, each made once."""

from collections.abc import Callable
from functools import cache

import pytest

from tests.task_corpora import write_task
from tests.unit.tasks.trials import Choice, Trial


@pytest.fixture(scope="package")
def data_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """The `data` section of a corpus."""
    return cache(lambda corpus: write_task(tmp_path_factory.mktemp(corpus), corpus))


@pytest.fixture(scope="package")
def trial_of(
    data_of: Callable[[str], dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Choice], Trial]:
    """A choice of a task's losses, built."""
    return cache(lambda choice: Trial.of(tmp_path_factory.mktemp("recipe"), choice, data_of(choice.corpus)))
