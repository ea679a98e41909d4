"""Who is late: the one that has begun fewer phases than those that wait."""

from trainer.engine.whereabouts import Where, late_ranks, named, shortened


def test_who_is_behind_is_late_once_the_others_have_waited_long_enough():
    places = {0: Where("step 3", 7, 10.0, True), 1: Where("step 3: data", 6, 2.0), 2: Where("step 3", 7, 12.0)}
    assert late_ranks(places, 41.0, after=30.0) == [], "rank 2 has waited for 29 s"
    assert late_ranks(places, 43.0, after=30.0) == [1]


def test_a_phase_that_all_are_in_keeps_nobody_waiting_however_long():
    places = {rank: Where("evaluating", 7, 0.0) for rank in range(3)}
    assert late_ranks(places, 1e6, after=30.0) == []


def test_of_several_that_are_behind_the_furthest_behind_are_late():
    places = {0: Where("c", 9, 0.0), 1: Where("b", 8, 0.0), 2: Where("a", 5, 0.0), 3: Where("a", 5, 0.0)}
    assert late_ranks(places, 100.0, after=30.0) == [2, 3]
    assert late_ranks({}, 100.0, after=30.0) == []


def test_messages_stay_a_line():
    assert named(Where("step 3: data", 6, 2.0), 44.0) == "step 3: data, for 42 s"
    assert shortened(list("ab")) == "a, b"
    assert shortened(list("abcdefghij")) == "a, b, c, d, e, f, g, h and 2 more"
