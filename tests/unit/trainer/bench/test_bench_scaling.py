"""The scaling benchmark: what it is asked, what it predicts from, and the table that the document shows."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from shards.errors import UserError
from trainer import cli
from trainer.bench import namespaces, scaling
from trainer.bench.measure_scaling import Case, Measured, Plan, link_of, predict, predicted_bytes
from trainer.bench.scaling_job import sent_bytes
from trainer.bench.scaling_table import COMPUTE_SECONDS, PARAMETERS, predict_clusters, table
from trainer.config.schema import REPOSITORY
from trainer.engine.step_time import Link

FREE = Case(hosts=2, ranks_per_host=1, stage=1, accumulation=1, rate=None)
SLOW = FREE._replace(rate="10mbit")


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--rate", "fast"), "--rate fast: expected a number with kbit, mbit or gbit, such as 100mbit"),
            (("--rate", "0mbit"), "--rate 0mbit: expected"),
            (("--hosts", "0"), "--hosts 0: expected at least 1"),
            (("--hosts", "1,two"), "--hosts: expected numbers with commas between them, got '1,two'"),
            (("--stages", "4"), "--stages 4: expected 0, 1, 2 or 3"),
            (("--hosts", "64", "--ranks", "8"), "512 ranks on one machine"),
            (("--rounds", "0"), "--rounds 0: expected at least 1"),
            (("--compute-seconds", "1"), "--compute-seconds: belongs to --table"),
            (("--table", "--compute-seconds", "0"), "--compute-seconds 0: expected more than 0"),
            (("--json", "/"), "--json /: is a directory; name a file"),
        ],
    )
    def test_a_mistake_is_one_line(self, arguments: tuple[str, ...], message: str, capfd: pytest.CaptureFixture[str]):
        assert cli.main(["bench", "scaling", *arguments]) == 2
        said = capfd.readouterr().err.splitlines()
        assert len(said) == 1
        assert message in said[0]

    def test_hosts_need_root(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert cli.main(["bench", "scaling"]) == 2
        assert capfd.readouterr().err == (
            "duoflow: --hosts: more than one host is made of network namespaces, which only root can make; use sudo\n"
        )

    def test_hosts_need_iproute2(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setenv("PATH", "/nonexistent")
        with pytest.raises(UserError, match="ip and tc not found; install iproute2"):
            namespaces.check_can_make_hosts()

    def test_a_rate_is_in_bits(self):
        assert namespaces.parse_rate("2.5gbit") == 2.5e9


class TestPrediction:
    def test_a_link_adds_the_time_of_what_it_carries(self):
        link = Link(bytes_per_second=1e6, gather_share=0.5)
        assert predict(SLOW, 1_000_000, 0.2, link) == pytest.approx(0.2 + 4.0 + 2.0 / 0.5)
        assert predict(FREE, 1_000_000, 0.2, None) == pytest.approx(0.2)

    def test_a_link_is_known_by_what_collectives_make_of_it(self):
        """1 MB over 4 ranks: a rank sends 1.5 MB of an all-reduce, and 0.75 MB of an all-gather."""
        assert link_of(1.5, 1.5, 250_000, 4) == Link(bytes_per_second=1e6, gather_share=0.5)

    def test_ranks_of_a_host_count_once_for_its_link(self):
        assert predicted_bytes(FREE, 1_000_000) == pytest.approx(6e6)
        assert predicted_bytes(FREE._replace(ranks_per_host=2), 1_000_000) == pytest.approx(9e6)
        assert predicted_bytes(FREE._replace(hosts=1), 1_000_000) == 0

    def test_what_a_namespace_sent_is_read_without_loopback(self):
        text = (
            "Inter-|   Receive    |  Transmit\n"
            " face |bytes packets errs drop fifo frame compressed multicast|bytes packets\n"
            "    lo: 900 1 0 0 0 0 0 0 900 1 0 0 0 0 0 0\n"
            "  eth0: 100 1 0 0 0 0 0 0 42 1 0 0 0 0 0 0\n"
            "  eth1: 100 1 0 0 0 0 0 0 58 1 0 0 0 0 0 0\n"
        )
        assert sent_bytes(text) == 100

    def test_the_table_of_measured_steps_names_the_ratio(self):
        found = Measured(
            case=SLOW,
            seconds=[2.0, 1.0, 3.0],
            predicted_seconds=2.2,
            link=Link(bytes_per_second=1e6, gather_share=0.5),
            sent_bytes=6e6,
            predicted_bytes=6e6,
        )
        plan = Plan(
            hosts=(2,),
            ranks_per_host=1,
            rates=("10mbit",),
            stages=(1,),
            accumulations=(1,),
            width=8,
            layers=1,
            steps=1,
            rounds=3,
        )
        assert scaling.measured_table(plan, [found]).splitlines()[-1].split() == (
            ["2", "1", "1", "10mbit", "8.0", "4.0", "6.00", "6.00", "2.000", "100%", "2.200", "1.10"]
        )
        assert found.as_json()["ratio"] == pytest.approx(1.1)


class TestTable:
    def test_the_document_shows_what_the_command_prints(self, capfd: pytest.CaptureFixture[str]):
        assert cli.main(["bench", "scaling", "--table"]) == 0
        printed = capfd.readouterr().out.strip()
        assert printed == table(predict_clusters(COMPUTE_SECONDS))
        document = (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
        assert printed in document, "docs/scaling.md: put in what `duoflow bench scaling --table` prints"

    def test_faster_links_and_fewer_parameters_never_take_longer(self):
        rows = {(row.parameters, row.nodes, row.gbits): row.time.total for row in predict_clusters(COMPUTE_SECONDS)}
        assert all(rows[p, n, 25] >= rows[p, n, 100] >= rows[p, n, 400] for p, n, _ in rows)
        assert all(rows[10_000_000, n, g] <= rows[38_000_000, n, g] <= rows[70_000_000, n, g] for _, n, g in rows)

    def test_the_figures_can_be_had_as_json(self, tmp_path: Path):
        out = tmp_path / "table.json"
        assert cli.main(["bench", "scaling", "--table", "--compute-seconds", "0.6", "--json", str(out)]) == 0
        rows = json.loads(out.read_text())["clusters"]
        assert len(rows) == len(PARAMETERS) * 7 * 3
        assert {row["compute"] for row in rows} == {0.6}


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
class TestNamespaces:
    @staticmethod
    def _counts(host: namespaces.Host) -> Mapping[str, object]:
        shown = subprocess.run(
            ["ip", "-n", host.namespace, "-j", "-s", "link", "show", "eth0"], capture_output=True, check=True, text=True
        )
        return json.loads(shown.stdout)[0]

    @pytest.fixture
    def made(self):
        try:
            namespaces.check_can_make_hosts()
            with namespaces.hosts(2) as made:
                yield made
        except UserError as error:
            pytest.skip(str(error))

    def test_hosts_reach_each_other_and_are_gone_afterwards(self):
        try:
            namespaces.check_can_make_hosts()
            with namespaces.hosts(2) as (first, second):
                assert self._counts(first)["operstate"] == "UP"
                assert second.address != first.address
        except UserError as error:
            pytest.skip(str(error))
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, check=True, text=True).stdout
        assert first.namespace not in listed

    def test_a_rate_is_set_and_taken_away(self, made: list[namespaces.Host]):
        def discipline() -> str:
            shown = ["tc", "-n", made[0].namespace, "qdisc", "show", "dev", "eth0"]
            return subprocess.run(shown, capture_output=True, check=True, text=True).stdout

        namespaces.shape(made, 10e6)
        assert "tbf" in discipline()
        assert "rate 10Mbit" in discipline()
        namespaces.shape(made, None)
        assert "tbf" not in discipline()
