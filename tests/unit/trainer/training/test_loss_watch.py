import math

from trainer.training.loss_watch import FIRST_STEPS, PAIR_STEPS, SAME_STEPS, LossWatch


def watch(values: list[float], *, part: str = "answer", first: int = 1, **known) -> list[str]:
    watcher = LossWatch()
    return [text for step, value in enumerate(values, first) for text in watcher.observe(step, {part: value}, **known)]


def test_a_loss_that_moves_gives_no_warning():
    assert watch([1.0 - step / 1000 for step in range(99)]) == []


def test_a_constant_loss_is_reported_once_and_only_after_twenty_steps():
    assert watch([0.7] * (SAME_STEPS - 1)) == []
    [text] = watch([0.7] * 90)
    assert text.startswith("answer_loss is 0.7 for 20 steps: ")
    assert "\n" not in text


def test_rounding_in_the_last_bits_of_fp32_still_counts_as_constant():
    assert len(watch([0.693147 * (1 + 1e-7 * (step % 3)) for step in range(30)])) == 1


def test_a_slow_drift_is_not_constant():
    assert watch([1.0 * (1 + 2e-6) ** step for step in range(99)]) == []


def test_a_break_starts_the_count_anew():
    assert watch([0.7] * 19 + [0.8] + [0.7] * 19) == []


def test_a_constant_loss_names_what_can_hold_it():
    [text] = watch([0.7] * 20)
    assert "same output for every input" in text
    assert "optim.lr is too low" in text


def test_after_the_first_hundred_steps_nothing_is_reported():
    assert watch([0.0] * 50, first=FIRST_STEPS + 1) == []
    assert watch([0.0] * 20, first=FIRST_STEPS - 18) == []
    assert len(watch([0.0] * 20, first=FIRST_STEPS - 19)) == 1


def test_nan_is_not_a_constant():
    assert watch([math.nan] * 40) == []
    assert watch([math.inf] * 40) == []


def test_parts_are_followed_apart():
    watcher = LossWatch()
    texts = [text for step in range(1, 41) for text in watcher.observe(step, {"answer": 0.0, "itm": 1.0 / step})]
    assert len(texts) == 1


def pairs(positives: list[int], negatives: list[int]) -> list[str]:
    watcher, steps = LossWatch(), zip(positives, negatives, strict=True)
    return [
        text
        for step, (right, wrong) in enumerate(steps, 1)
        for text in watcher.observe(step, {"itm": 1.0 / step}, positives=right, negatives=wrong)
    ]


def test_pairs_of_one_class_are_reported_once():
    [text] = pairs([8] * 50, [0] * 50)
    assert text.startswith(f"all {8 * PAIR_STEPS} texts")
    assert "losses.negatives" in text


def test_a_step_without_a_wrong_text_among_others_is_nothing_to_report():
    assert pairs([8, 8, 3] * 10, [5, 0, 0] * 10) == []


def test_pairs_without_a_positive_are_reported_as_well():
    [text] = pairs([0] * 9, [5] * 9)
    assert f"none of the {5 * PAIR_STEPS} texts" in text


def test_steps_without_any_pair_are_no_class_of_their_own():
    assert pairs([0] * 9, [0] * 9) == []
