"""Predictions in a bounded part of memory: the same values, orders and files as a dict gives."""

import json
import random
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.atomic import write_atomically
from tests.thread_ranks import on_ranks
from trainer.scoring import predictions as module
from trainer.scoring.predictions import Predictions, by_id, by_number, gather
from trainer.tasks import task_named
from trainer.tasks.seam import Submission

VALUES = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6), st.text(max_size=6), max_size=20
)


@given(VALUES)
def test_they_are_a_dict_in_the_order_of_ids(values: dict) -> None:
    kept = Predictions(values)
    assert (kept, len(kept), list(kept)) == (values, len(values), sorted(values))
    assert dict(by_id(values)) == dict(by_id(kept)) == values
    kept.update({name: [value, None] for name, value in values.items()})
    assert kept == {name: [value, None] for name, value in values.items()}


def test_an_id_that_is_not_there_is_no_prediction() -> None:
    with pytest.raises(KeyError):
        Predictions({"a": 1})["b"]


def test_numbers_stand_by_their_size_and_in_front_of_other_ids() -> None:
    big = str(10**30)
    ids = ["b", "10", "9", big, "007", "a1", "100"]
    assert [name for name, _ in by_number(dict.fromkeys(ids, ""))] == ["007", "9", "10", "100", big, "a1", "b"]


@given(st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=3), min_size=1), max_size=4), st.booleans())
def test_an_array_in_pieces_is_that_of_one_dump(rows: list, is_ascii: bool) -> None:
    expected = json.dumps(rows, indent=1, ensure_ascii=is_ascii) + "\n"
    assert Submission.of_rows(rows, ensure_ascii=is_ascii).content.decode("utf-8", "surrogatepass") == expected


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_those_of_all_ranks_come_together_in_pieces_and_one_rank_may_have_none(world_size: int, monkeypatch) -> None:
    monkeypatch.setattr(module, "_PIECE_BYTES", 1)
    monkeypatch.setattr(module, "_SMALLEST_PIECE", 40)
    everything = {f"q{number:03d}": [f"say {number}"] for number in range(50)}
    shares = [dict(list(everything.items())[rank :: world_size + 1]) for rank in range(world_size - 1)]
    shares.append({name: said for name, said in everything.items() if not any(name in share for share in shares)})
    if world_size > 1:
        shares[0], shares[-1] = {}, shares[-1] | shares[0]
    made = on_ranks(world_size, lambda world: gather(Predictions(shares[world.rank]), world))
    assert made[0] == everything
    assert made[1:] == [None] * (world_size - 1)


def test_ranks_without_a_prediction_agree_on_an_empty_file() -> None:
    made = on_ranks(3, lambda world: gather(Predictions(), world))
    assert made[0] == {}
    assert task_named("gqa").dump(made[0]).content == b"[]\n"


def test_a_file_is_written_without_holding_what_it_says(tmp_path) -> None:
    kept, rng = Predictions(), random.Random(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(30):
        kept.update({f"{rng.randrange(10**9):09d}": "an answer of some words" for _ in range(10_000)})
    write_atomically(tmp_path / "val.json", task_named("gqa").dump(kept).pieces)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    assert (tmp_path / "val.json").stat().st_size > 20e6
    assert grown < 120, f"{grown:.0f} MB for 300,000 predictions"
    rows = json.loads((tmp_path / "val.json").read_bytes())
    assert [row["questionId"] for row in rows] == list(kept)
