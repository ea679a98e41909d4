"""One lab serves all tests: two hosts, on which torch is imported once, and more where a test asks for them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.training_runs import DROPOUT
from tests.multinode.lab import Host, Lab, what_is_missing
from tests.multinode.ranks import DONE, Crew
from tests.multinode.runs import Project, Run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.multinode)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab without hosts, or a reason why there can be none."""
    missing = what_is_missing()
    if missing is not None:
        pytest.skip(missing)
    with Lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.fixture(scope="session")
def whole_crew(lab: Lab) -> Crew:
    directory = lab.directory / "shared"
    directory.mkdir()
    return Crew(directory)


@pytest.fixture(scope="session")
def two(lab: Lab, whole_crew: Crew) -> tuple[Host, Host]:
    """Two hosts."""
    hosts = (lab.add_host(), lab.add_host())
    whole_crew.prepare(hosts)
    return hosts


@pytest.fixture
def four(lab: Lab, two: tuple[Host, Host], whole_crew: Crew) -> tuple[Host, ...]:
    """The two hosts and two more, added to a lab that is up; those that a test has switched off are on again."""
    for name in ("node3", "node4"):
        if name not in lab.hosts or not lab.hosts[name].is_alive:
            lab.add_host(name)
    hosts = (*two, lab.hosts["node3"], lab.hosts["node4"])
    whole_crew.wait_until_warm(hosts)
    return hosts


@pytest.fixture
def crew(whole_crew: Crew) -> Iterator[Crew]:
    """Starts ranks; those that a test leaves behind are ended."""
    yield whole_crew
    whole_crew.kill()


@pytest.fixture(scope="session")
def project(lab: Lab) -> Project:
    """Shards and recipe on the disk that the hosts share."""
    return Project.write(lab.directory / "shared")


@pytest.fixture(scope="session")
def on_one_host(two: tuple[Host, Host], whole_crew: Crew, project: Project) -> Run:
    """Two ranks of one host, with dropout: the bits that others are compared with."""
    start = whole_crew.start(two[:1], project.recipe, "run.name=one_host", *DROPOUT, slots=2)
    assert start.codes() == [DONE, DONE], start.said
    return project.run("one_host")
