"""What the kernel says of a network: InfiniBand's ports before an interface, and nothing where it does not know."""

from pathlib import Path

import pytest

from trainer.engine.link_speed import link_gbits


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(("text", "gbits"), [("100000\n", 100.0), ("-1\n", None), ("", None), ("0\n", None)])
def test_an_interface_has_the_speed_of_its_file(tmp_path: Path, text: str, gbits: float | None):
    write(tmp_path / "net/eth0/speed", text)
    assert link_gbits("eth0", tmp_path) == gbits


def test_no_such_interface_is_not_known(tmp_path: Path):
    assert link_gbits("eth0", tmp_path) is None
    assert link_gbits(None, tmp_path) is None


def test_active_ports_of_infiniband_add_up(tmp_path: Path):
    write(tmp_path / "net/eth0/speed", "10000\n")
    for number, state in enumerate(("4: ACTIVE", "4: ACTIVE", "1: DOWN")):
        write(tmp_path / f"infiniband/mlx5_{number}/ports/1/state", state)
        write(tmp_path / f"infiniband/mlx5_{number}/ports/1/rate", "400 Gb/sec (4X NDR)\n")
    assert link_gbits("eth0", tmp_path) == 800.0
