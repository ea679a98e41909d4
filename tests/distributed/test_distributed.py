"""Agreements between ranks: all hear the same, and nobody waits for a rank that is gone."""

import json
import re

import pytest

from tests.distributed.forked_ranks import fork_ranks

pytestmark = pytest.mark.distributed


def test_flags_sums_and_texts_reach_every_rank(two_ranks):
    for result in two_ranks["agreements"]:
        assert result["any"] == [True, False]
        assert result["sum"] == [3.0, 1.0]
        assert result["text"] == "ä\nb"
        assert result["empty"] == ""
        assert result["from last"] == "from 1"
    assert [result["gathered"] for result in two_ranks["agreements"]] == [["", "x"], None]


def test_an_error_of_one_rank_is_raised_by_all_with_its_kind_and_rank(two_ranks):
    for result in two_ranks["agreements"]:
        assert result["errors"] == [["DataError", "rank 0: broken at 0"], ["DataError", "rank 1: broken at 1"]]


def test_a_process_alone_agrees_with_itself(alone):
    (result,) = alone["agreements"]
    assert result["any"] == [False, False]
    assert result["sum"] == [1.5, 0.0]
    assert result["gathered"] == [""]
    assert result["errors"] == [["DataError", "broken at 0"]]


def test_a_rank_that_is_late_or_gone_makes_the_others_leave_saying_what_they_waited_for(tmp_path):
    done = fork_ranks("tests.distributed.leaving_worker", str(tmp_path))
    assert done.returncode != 0
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert "Timed out waiting 2000ms" in first["step"], "DeepSpeed's collectives should know the timeout too"
    assert set(first["timeouts"]) == set(second["timeouts"]) == {2.0}, "each of its groups, from its making on"
    assert "lost the other ranks while waiting for every rank to finish the epoch (timeout 2 s)" in first["late"]
    assert "Ranks 1 failed" in first["late"]
    assert "finish the epoch" in second["late"]
    assert "waiting for every rank to save step 3" in first["gone"]
    assert re.search(r"rank 1 on \S+ ended without a word: it was killed, or its host is gone", first["gone"])
