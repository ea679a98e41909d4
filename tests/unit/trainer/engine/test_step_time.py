"""The formula of a step: bytes as counted on hosts, and times that move the way the parts do."""

from dataclasses import replace

import pytest

from trainer.engine.step_time import SMALL_COLLECTIVES, Cluster, Link, Policy, StepTime, Work, step_time, traffic

WORK = Work(parameters=38_000_000, element_bytes=2, micro_seconds=0.06, accumulation=2, update_seconds=0.001)
FAST, SLOW = Link(bytes_per_second=100e9), Link(bytes_per_second=1e9)
STAGES = (0, 1, 2, 3)


def cluster(hosts: int = 2, ranks_per_host: int = 8, **changes: object) -> Cluster:
    return Cluster(**{"hosts": hosts, "ranks_per_host": ranks_per_host, "network": SLOW, "local": FAST} | changes)


class TestTraffic:
    @pytest.mark.parametrize(
        ("hosts", "stage", "counted"),
        [
            (2, 0, 8.42e6),
            (2, 1, 12.63e6),
        ],
    )
    def test_a_host_sends_what_its_interface_counted(self, hosts: int, stage: int, counted: float):
        """2,101,248 parameters in fp32 over namespaces (docs/scaling.md), headers included."""
        work = Work(parameters=2_101_248, element_bytes=4, micro_seconds=0.0)
        assert traffic(work, Policy(stage=stage)).sent_bytes(hosts) == pytest.approx(counted, rel=0.05)

    def test_stage_1_sends_half_as_much_again_as_stage_0(self):
        sent = [traffic(WORK, Policy(stage=stage)).sent_bytes(16) for stage in STAGES]
        assert sent[1] == pytest.approx(1.5 * sent[0])
        assert sent[1] < sent[2] < sent[3]

    @pytest.mark.parametrize("stage", STAGES)
    def test_only_stages_2_and_3_send_more_for_more_micro_batches(self, stage: int):
        once, twice = (
            traffic(replace(WORK, accumulation=count), Policy(stage=stage)).sent_bytes(4) for count in (1, 2)
        )
        assert (twice > once) == (stage >= 2)

    def test_a_rank_alone_sends_nothing(self):
        assert traffic(WORK, Policy(stage=1)).sent_bytes(1) == 0


class TestStepTime:
    @pytest.mark.parametrize("stage", STAGES)
    def test_ranks_of_a_host_share_its_link_without_waiting_for_each_other(self, stage: int):
        """A ring leaves each host once: 8 ranks a host move at the rate of one, and only n - 1 of n grows."""
        one, eight = (step_time(WORK, Policy(stage=stage), cluster(2, ranks)) for ranks in (1, 8))
        assert eight.reduce == pytest.approx(one.reduce * (15 / 16) / (1 / 2))

    def test_stage_0_takes_as_long_as_its_bytes(self):
        time = step_time(WORK, Policy(stage=0), cluster(2, 1))
        assert time == StepTime(0.12, 0.001, pytest.approx(0.076), 0.0, 0.0)

    def test_one_rank_computes_and_updates(self):
        assert step_time(WORK, Policy(stage=1), cluster(1, 1)).total == pytest.approx(0.121)

    @pytest.mark.parametrize("stage", [1, 2, 3])
    def test_zero_shares_the_update(self, stage: int):
        assert step_time(WORK, Policy(stage=stage), cluster()).update == pytest.approx(0.001 / 16)

    @pytest.mark.parametrize("stage", [1, 2])
    def test_overlap_hides_all_but_the_last_bucket_at_most(self, stage: int):
        plain = Policy(stage=stage, reduce_bucket_elements=3_800_000)
        apart, behind = (step_time(WORK, replace(plain, overlap=overlap), cluster()) for overlap in (False, True))
        assert apart.reduce / 10 <= behind.reduce < apart.reduce
        assert behind.gather == apart.gather > 0

    def test_one_bucket_hides_nothing(self):
        apart, behind = (step_time(WORK, Policy(stage=1, overlap=overlap), cluster()) for overlap in (False, True))
        assert behind == apart

    def test_stage_0_has_no_overlap(self):
        apart, behind = (step_time(WORK, Policy(stage=0, overlap=overlap), cluster()) for overlap in (False, True))
        assert behind == apart

    def test_on_a_slow_link_stage_0_is_faster_and_on_a_fast_one_stage_1(self):
        def faster(network: Link) -> int:
            policies = (Policy(stage=0), Policy(stage=1, reduce_bucket_elements=2_500_000, overlap=True))
            return min(policies, key=lambda policy: step_time(WORK, policy, cluster(network=network)).total).stage

        assert faster(Link(bytes_per_second=0.1e9)) == 0
        assert faster(Link(bytes_per_second=10e9)) == 1

    def test_accumulation_leaves_the_model_more_of_a_step(self):
        efficiencies = [
            step_time(replace(WORK, accumulation=count), Policy(stage=1), cluster()).efficiency for count in (1, 2, 4)
        ]
        assert efficiencies == sorted(efficiencies)

    def test_the_bottleneck_is_what_takes_longest(self):
        assert StepTime(compute=3.0, update=1.0, reduce=2.0, gather=1.0, latency=0.0).bottleneck == "compute"
        assert StepTime(compute=1.0, update=1.0, reduce=2.0, gather=3.0, latency=0.0).bottleneck == "gather"


LATE = {"network": Link(bytes_per_second=1e9, latency_seconds=1e-3), "local": Link(bytes_per_second=1e9)}


class TestLatency:
    def test_a_ring_crosses_every_host_twice(self):
        time = step_time(WORK, Policy(stage=0), cluster(4, 2, **LATE))
        assert time.latency == pytest.approx(2 * (1 + SMALL_COLLECTIVES) * 4e-3)

    def test_a_tree_is_as_deep_as_the_logarithm(self):
        time = step_time(WORK, Policy(stage=0), cluster(64, 8, algorithm="tree", **LATE))
        assert time.latency == pytest.approx(2 * (1 + SMALL_COLLECTIVES) * 6e-3)

    def test_more_buckets_cost_more_of_it(self):
        few, many = (
            step_time(WORK, Policy(stage=1, reduce_bucket_elements=size), cluster(**LATE)).latency
            for size in (10_000_000, 1_000_000)
        )
        assert many > few
