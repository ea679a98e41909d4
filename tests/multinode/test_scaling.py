"""`duoflow bench scaling` over two hosts of its own: what is sent is what the formula says."""

import json
from pathlib import Path

import pytest

from tests.multinode.lab import what_is_missing
from trainer import cli


def test_hosts_send_what_the_formula_says(tmp_path: Path):
    missing = what_is_missing()
    if missing is not None:
        pytest.skip(missing)
    out = tmp_path / "scaling.json"
    words = ("--hosts", "2", "--rate", "200mbit", "--stages", "0,1", "--steps", "1", "--rounds", "1")
    assert cli.main(["bench", "scaling", *words, "--json", str(out)]) == 0
    cases = json.loads(out.read_text())["cases"]
    assert [(case["stage"], case["rate"]) for case in cases] == [(0, None), (1, None), (0, "200mbit"), (1, "200mbit")]
    for case in cases:
        assert case["sent_bytes"] == pytest.approx(case["predicted_bytes"], rel=0.1), case
        assert case["seconds"] > 0
