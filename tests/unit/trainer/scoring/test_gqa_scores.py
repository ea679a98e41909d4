"""The scores are the official script's, however the questions are split."""

import json
from collections import Counter, defaultdict
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.scoring.gqa.attentions import AttentionForm, read_attentions
from trainer.scoring.gqa.grounding import cells_score, map_cells, map_scores
from trainer.scoring.gqa.predictions import read_choices, read_predictions
from trainer.scoring.gqa.questions import QuestionSet, read_questions
from trainer.scoring.gqa.scenes import read_scenes
from trainer.scoring.gqa.scores import (
    BREAKDOWNS,
    METRICS,
    GqaAnswers,
    GqaQuestions,
    GqaScores,
    entailed_by_correct,
    score_answers,
)
from trainer.scoring.metrics import AnswerScores

GOLDEN = Path(__file__).parents[3] / "golden" / "gqa_eval"
"""Made-up questions in GQA's format, and what the official script computes of them; attentions of balanced ones."""

untimed = settings(deadline=None, max_examples=60)


def ignored(_: int) -> None:
    pass


@pytest.fixture(scope="module")
def golden() -> tuple[QuestionSet, GqaAnswers]:
    scenes = read_scenes(GOLDEN / "sceneGraphs.json", ignored)
    questions = read_questions([GOLDEN / "questions.json"], ignored, scenes=scenes)
    predicted = read_predictions(GOLDEN / "predictions.json", questions, ignored).predicted
    valid, plausible = read_choices(GOLDEN / "choices.json", questions, predicted, ignored)
    grounding = read_attentions(GOLDEN / "attentions.json", questions, ignored, AttentionForm())
    return questions, GqaAnswers(predicted=predicted, valid=valid, plausible=plausible, grounding=grounding)


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((GOLDEN / "expected.json").read_text())


class TestAgainstTheOfficialScript:
    def test_every_metric_is_the_same(self, golden, expected):
        questions, answers = golden
        metrics = score_answers(questions.columns, answers).as_metrics()
        assert tuple(metrics) == METRICS
        assert metrics == pytest.approx({name: expected[name] for name in METRICS}, rel=1e-9)

    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            ("structural", "accuracyPerStructuralType"),
            ("semantic", "accuracyPerSemanticType"),
            ("steps", "accuracyPerSteps"),
            ("length", "accuracyPerLength"),
        ],
    )
    def test_every_breakdown_has_its_accuracies_and_counts(self, golden, expected, kind: str, name: str):
        breakdown = score_answers(golden[0].columns, golden[1]).breakdown(kind)
        assert list(breakdown) == list(expected[name]), "in this order"
        for value, (percent, count) in expected[name].items():
            assert breakdown[value].percent == pytest.approx(percent, rel=1e-9)
            assert breakdown[value].questions == count

    def test_validation_counts_the_same_when_predictions_are_normalised_as_it_does(self, golden):
        questions = read_questions([GOLDEN / "questions.json"], ignored)
        normalize = ("lower", "spaces")
        predicted = read_predictions(GOLDEN / "predictions.json", questions, ignored, normalize=normalize).predicted
        scores = score_answers(questions.columns, GqaAnswers(predicted=predicted))
        assert scores.correct["accuracy"] > score_answers(*(golden[0].columns, golden[1])).correct["accuracy"]
        records = json.loads((GOLDEN / "questions.json").read_text())
        seen = AnswerScores.empty()
        for entry in json.loads((GOLDEN / "predictions.json").read_text()):
            record = records[entry["questionId"]]
            if record["isBalanced"]:
                types = {name: record["types"][name] for name in ("structural", "semantic")}
                words = len(record["question"].split())
                seen.add(entry["prediction"], record["answer"], **types, words=words)
        counts = seen.as_counts("")
        cells = {"/count": "accuracy", "/binary/count": "binary", "/open/count": "open"}
        for name, count in counts.items():
            cell = cells.get(name, name.strip("/").removesuffix("/count"))
            assert scores.count[cell] == count
            value = seen.as_metrics("")["/accuracy" if name == "/count" else name.removesuffix("/count")]
            assert scores.correct[cell] == pytest.approx(value * count)


def columns(records: list[dict[str, Any]]) -> tuple[GqaQuestions, GqaAnswers]:
    """Records with id, gold, predicted (None for no answer) and, if they matter, type, group, entails, balanced."""
    texts: dict[str, int] = {}
    ids = {record["id"]: number for number, record in enumerate(records)}
    for record in records:
        for other in record.get("entails", []):
            ids.setdefault(other, len(ids))

    def number(text: str | None) -> int:
        return -1 if text is None else texts.setdefault(text, len(texts))

    gold, predicted = np.full(len(ids), -1), np.full(len(ids), -1)
    for record in records:
        gold[ids[record["id"]]] = number(record["gold"])
        predicted[ids[record["id"]]] = number(record["predicted"])
    scored = [record for record in records if record.get("balanced", True)]
    entailed = [[ids[other] for other in r.get("entails", []) if other != r["id"]] for r in scored]

    def column(name: str) -> np.ndarray:
        return np.array([number(record.get(name)) for record in scored], dtype=np.int64)

    questions = GqaQuestions(
        structural=column("type"),
        semantic=column("semantic"),
        group=column("group"),
        steps=np.array([record.get("steps", 1) for record in scored], dtype=np.int64),
        length=np.array([record.get("length", 5) for record in scored], dtype=np.int64),
        texts=list(texts),
        gold=gold,
        scored=np.array([ids[record["id"]] for record in scored], dtype=np.int64),
        entailed=np.array([other for others in entailed for other in others], dtype=np.int64),
        entailed_starts=np.cumsum([0, *map(len, entailed)]),
    )
    known = [(len(record["id"]) + len(record["gold"])) % 2 == 0 for record in scored]
    grounding = np.array([0.1 * number_ for number_ in range(len(scored))])
    valid = np.array(known, dtype=bool)
    return questions, GqaAnswers(predicted=predicted, valid=valid, plausible=~valid, grounding=grounding)


def metrics_of(*records: dict[str, Any]) -> dict[str, float | None]:
    return score_answers(*columns(list(records))).as_metrics()


def ask(id: str, gold: str = "yes", predicted: str | None = "yes", **more: Any) -> dict[str, Any]:
    return {"id": id, "gold": gold, "predicted": predicted, **more}


class TestDefinitions:
    def test_an_answer_is_compared_as_it_is_written(self):
        assert metrics_of(ask("a", "red", "red"), ask("b", "red", "Red"), ask("c", "red", None))["accuracy"] == (
            pytest.approx(100 / 3)
        )

    def test_only_balanced_questions_are_scored(self):
        assert metrics_of(ask("a"), ask("b", predicted="no", balanced=False))["accuracy"] == 100

    def test_query_is_open_and_all_else_is_binary(self):
        found = metrics_of(ask("a", type="query"), ask("b", "yes", "no", type="verify"), ask("c", type="riddle"))
        assert (found["open"], found["binary"]) == (100, 50)

    def test_without_a_type_an_answer_other_than_yes_and_no_makes_a_question_open(self):
        found = metrics_of(ask("a"), ask("b", "no", "yes"), ask("c", "red", "red"))
        assert (found["binary"], found["open"]) == (50, 100)

    def test_consistency_is_the_mean_over_correct_questions_of_the_share_of_right_entailed_ones(self):
        found = metrics_of(
            ask("a", entails=["b", "c", "a"]),  # b is right, c wrong, itself does not count: 1/2
            ask("b", entails=["a"]),  # 1
            ask("c", predicted="no", entails=["a", "b"]),  # wrong itself
            ask("d"),  # entails nothing
            ask("e", entails=["e"]),  # entails but itself
        )
        assert found["consistency"] == 75

    def test_what_is_entailed_twice_counts_twice_and_need_not_be_balanced(self):
        found = metrics_of(ask("a", entails=["b", "b", "c"]), ask("b", balanced=False), ask("c", "no", balanced=False))
        assert found["consistency"] == pytest.approx(200 / 3)

    def test_the_consistency_asks_for_what_correct_balanced_questions_entail(self):
        questions, answers = columns(
            [ask("a", entails=["x", "y", "a"]), ask("b", "no", entails=["z"]), ask("c", balanced=False, entails=["w"])]
        )
        assert len(entailed_by_correct(questions, answers)) == 2
        assert (questions.gold[entailed_by_correct(questions, answers)] == -1).all()

    def test_an_unknown_entailed_question_without_an_answer_is_not_right(self):
        assert metrics_of(ask("a", entails=["x"]))["consistency"] == 0

    def test_distribution_is_chi_square_within_groups_weighted_by_their_questions(self):
        found = metrics_of(
            ask("a", "red", "red", group="color"),
            ask("b", "red", "blue", group="color"),
            ask("c", "blue", "wood", group="color"),  # not an answer of the group: ignored
            ask("d", "cup", None, group="object"),
            ask("e", "sun", "rain"),  # no group
        )
        color = (1 - 2) ** 2 / 2 + (1 - 1) ** 2 / 1
        thing = (0 - 1) ** 2 / 1
        assert found["distribution"] == pytest.approx((3 * color + 1 * thing) / 4 / 100)

    def test_what_counts_no_question_has_no_value_instead_of_zero(self):
        questions, answers = columns([ask("a", type="query")])
        bare = GqaAnswers(predicted=answers.predicted)
        found = score_answers(questions, bare).as_metrics()
        assert {name for name, value in found.items() if value is None} == {
            "binary",
            "consistency",
            "validity",
            "plausibility",
            "grounding",
            "distribution",
        }
        assert set(GqaScores().as_metrics().values()) == {None}

    def test_numbers_of_words_sort_as_numbers(self):
        questions, answers = columns([ask(f"{n}", length=n) for n in (11, 9, 100)])
        assert list(score_answers(questions, answers).breakdown("length")) == ["9", "11", "100"]


answers = st.sampled_from(["yes", "no", "red", "blue", "wood"])
records = st.lists(
    st.fixed_dictionaries(
        {
            "gold": answers,
            "predicted": st.none() | answers,
            "type": st.sampled_from([None, "query", "verify", "choose"]),
            "semantic": st.sampled_from([None, "obj", "attr"]),
            "group": st.sampled_from([None, "color", "material"]),
            "steps": st.integers(0, 12),
            "length": st.integers(1, 30),
            "balanced": st.booleans(),
            "entails": st.lists(st.integers(0, 30).map(str), max_size=4),
            "part": st.integers(0, 3),
        }
    ),
    max_size=30,
).map(lambda rows: [{"id": str(number), **row} for number, row in enumerate(rows)])


def mean(values: list[float]) -> float | None:
    return 100 * sum(values) / len(values) if values else None


def by_the_book(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """The definitions once more, question by question."""
    by_id = {row["id"]: row for row in rows}
    means = defaultdict(list)
    gold, predicted = defaultdict(Counter), defaultdict(Counter)
    for row in rows:
        if not row["balanced"]:
            continue
        hit = row["gold"] == row["predicted"]
        is_open = row["type"] == "query" if row["type"] else row["gold"] not in ("yes", "no")
        means["accuracy"].append(hit)
        means["open" if is_open else "binary"].append(hit)
        others = [by_id.get(other) for other in row["entails"] if other != row["id"]]
        if hit and others:
            right = [other is not None and other["gold"] == other["predicted"] for other in others]
            means["consistency"].append(sum(right) / len(right))
        if row["group"] is not None:
            gold[row["group"]][row["gold"]] += 1
            predicted[row["group"]][row["predicted"]] += 1
    distances = [
        (sum((predicted[group][answer] - count) ** 2 / count for answer, count in counts.items()), counts.total())
        for group, counts in gold.items()
    ]
    total = sum(weight for _, weight in distances)
    return {
        **{name: mean(means[name]) for name in ("binary", "open", "accuracy", "consistency")},
        "distribution": sum(value * weight for value, weight in distances) / total / 100 if total else None,
    }


@untimed
@given(rows=records)
def test_the_columns_give_what_the_definitions_give(rows):
    found = score_answers(*columns(rows)).as_metrics()
    for name, value in by_the_book(rows).items():
        assert found[name] == (None if value is None else pytest.approx(value, rel=1e-12)), name


def split(questions: GqaQuestions, answers: GqaAnswers, parts: list[int]) -> list[GqaScores]:
    numbers = np.array(parts, dtype=np.int64)
    return [score_answers(questions, answers, part=np.flatnonzero(numbers == part)) for part in range(4)]


@untimed
@given(rows=records)
def test_any_split_of_the_questions_merges_to_the_same_scores(rows):
    questions, answers = columns(rows)
    whole = score_answers(questions, answers)
    merged = reduce(add, split(questions, answers, [row["part"] for row in rows if row["balanced"]]))
    assert merged.grounding_sum == pytest.approx(whole.grounding_sum, rel=1e-12)
    for name, value in whole.as_metrics().items():
        same = merged.as_metrics()[name]
        assert same == (value if name != "grounding" or value is None else pytest.approx(value, rel=1e-12)), name
    for kind in BREAKDOWNS:
        assert merged.breakdown(kind) == whole.breakdown(kind)


@pytest.mark.parametrize("seed", range(3))
def test_the_golden_scores_do_not_depend_on_the_split(golden, expected, seed: int):
    questions, answers = golden
    parts = np.random.default_rng(seed).integers(0, 4, len(questions.columns.scored)).tolist()
    metrics = reduce(add, split(questions.columns, answers, parts)).as_metrics()
    assert metrics == pytest.approx({name: expected[name] for name in METRICS}, rel=1e-9)
    whole = score_answers(questions.columns, answers).as_metrics()
    assert {name: metrics[name] for name in METRICS if name != "grounding"} == {
        name: whole[name] for name in METRICS if name != "grounding"
    }, "to the last bit"


@untimed
@given(rows=records)
def test_scores_travel_between_ranks_as_json(rows):
    scores = score_answers(*columns(rows))
    assert msgspec.json.decode(msgspec.json.encode(scores), type=GqaScores) == scores


def box(x0: int, y0: int, x1: int, y1: int) -> list[float]:
    """On a grid of twelfths."""
    return [x0 / 12, y0 / 12, x1 / 12, y1 / 12]


spans = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted)
grid_boxes = st.lists(st.tuples(spans, spans).map(lambda s: box(s[0][0], s[1][0], s[0][1], s[1][1])), max_size=4)


def attention(side: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((side, side))


def painted(map_: np.ndarray, regions: list[list[float]], *, once: bool) -> float:
    """The score of a map on a grid of twelfths, pixel by pixel; side divides 12."""
    pixels = np.kron(map_, np.ones((12 // len(map_),) * 2)) / (12 // len(map_)) ** 2
    times = np.zeros((12, 12))
    for region in regions:
        x0, y0, x1, y1 = (round(12 * value) for value in region)
        times[x0:x1, y0:y1] += 1
    return float((pixels * (times.clip(max=1) if once else times)).sum())


class TestGrounding:
    def test_the_first_index_of_a_map_counts_along_x(self):
        map_ = np.zeros((1, 7, 7))
        map_[0, 6, 0] = 1.0
        upper_right = np.array([[6 / 7, 0, 1, 1 / 7]])
        assert map_scores(map_, upper_right, np.array([0])) == pytest.approx([1.0])

    def test_a_region_counts_by_the_part_of_the_cell_that_it_covers(self):
        half = np.array([[0.0, 0.0, 0.25, 0.5]])  # of the first of 2 x 2 cells
        assert map_scores(np.full((1, 2, 2), 0.25), half, np.array([0])) == pytest.approx([0.125])

    def test_a_question_about_nothing_scores_nothing(self):
        assert map_scores(np.ones((2, 3, 3)), np.zeros((0, 4)), np.zeros(0, dtype=np.int64)).tolist() == [0.0, 0.0]
        assert cells_score(map_cells(np.ones((3, 3))), np.zeros((0, 4)), overlaps_once=True) == 0.0

    @untimed
    @given(side=st.sampled_from([1, 2, 3, 4, 6, 12]), regions=grid_boxes, seed=st.integers(0, 9))
    def test_maps_and_their_cells_give_what_painting_gives(self, side: int, regions: list[list[float]], seed: int):
        map_, boxes = attention(side, seed), np.array(regions).reshape(-1, 4)
        by_map = map_scores(map_[None], boxes, np.zeros(len(boxes), dtype=np.int64))[0]
        assert by_map == pytest.approx(painted(map_, regions, once=False), abs=1e-12)
        assert cells_score(map_cells(map_), boxes) == pytest.approx(by_map, abs=1e-12)
        once = cells_score(map_cells(map_), boxes, overlaps_once=True)
        assert once == pytest.approx(painted(map_, regions, once=True), abs=1e-12)
        assert once <= map_.sum() + 1e-12

    def test_cells_may_be_any_boxes_with_an_attention(self):
        cells = np.array([[*box(0, 0, 6, 12), 0.75], [*box(3, 0, 9, 6), 0.5]])
        assert cells_score(cells, np.array([box(0, 0, 6, 6)])) == pytest.approx(0.75 * 0.5 + 0.5 * 0.5)
