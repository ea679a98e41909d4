"""Slurm's short form of host names."""

import pytest

from shards.errors import ConfigError
from trainer.engine.nodelist import expand_nodelist


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("gpu1", ["gpu1"]),
        ("gpu[01-03,07]", ["gpu01", "gpu02", "gpu03", "gpu07"]),
        ("gpu[9-11]", ["gpu9", "gpu10", "gpu11"]),
        ("gpu[098-101]", ["gpu098", "gpu099", "gpu100", "gpu101"]),
        ("login,gpu[1-2],cpu5", ["login", "gpu1", "gpu2", "cpu5"]),
        ("r[1-2]n[1,3]-ib", ["r1n1-ib", "r1n3-ib", "r2n1-ib", "r2n3-ib"]),
        ("a.b.example,10.0.0.1", ["a.b.example", "10.0.0.1"]),
    ],
)
def test_every_host_is_named_once_and_in_order(text: str, names: list[str]):
    assert expand_nodelist(text) == names


@pytest.mark.parametrize(
    "text", ["", "gpu[", "gpu[]", "gpu[1-]", "gpu[a-b]", "gpu]1[", "gpu[3-1]", "a,,b", "(null),", "n[0-99999999]"]
)
def test_what_is_no_list_is_refused_in_one_line(text: str):
    with pytest.raises(ConfigError, match=r"^environment: node list .* set MASTER_ADDR") as refused:
        expand_nodelist(text)
    assert "\n" not in str(refused.value)
