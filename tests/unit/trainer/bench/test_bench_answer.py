"""The answer benchmark: its stages are what answers, both modes are timed by turns, and grouping changes nothing."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BlipForConditionalGeneration, T5ForConditionalGeneration

from model.config import CaptionConfig, ModelConfig, PnpConfig
from model.pnp.pipeline import PnpPipeline
from model.pnp.viewer import Viewer
from model.source import scratch_blip_config
from trainer import cli
from trainer.bench import measure_answer as measuring
from trainer.bench.answer import table
from trainer.bench.answer_workload import (
    FEW_CAPTIONS,
    MOST_ANSWER_TOKENS,
    AnswerSizes,
    Models,
    ReaderSizes,
    bert_tokenizer,
    build_models,
    draw_questions,
    t5_config,
    t5_tokenizer,
)
from trainer.bench.measure_answer import (
    GROUPED,
    LARGEST_DIFFERENCE,
    MODES,
    UNGROUPED,
    Agreement,
    AnswerMeasurement,
    ask,
    compare,
    measure_answer,
    time_stages,
)
from trainer.bench.stages import PIPELINES, STAGES, Asked
from trainer.bench.workload import GQA_QUESTION_TOKENS
from trainer.reporting.overlays import answer_directly

TINY = AnswerSizes(
    model=ModelConfig.model_validate(
        {
            "scratch": {
                "image_size": 32,
                "patch_size": 8,
                "width": 24,
                "heads": 3,
                "vision_layers": 2,
                "text_layers": 2,
                "vocab_size": 300,
            },
            "efficient_sam": {
                "variant": "custom",
                "image_size": 32,
                "patch_size": 8,
                "width": 12,
                "depth": 1,
                "heads": 2,
                "neck_width": 16,
            },
            "fusion": {"layers": 2, "heads": 3},
        }
    ),
    pnp=PnpConfig(captions=CaptionConfig(num_captions=15, num_patches=4), max_answer_tokens=1 + MOST_ANSWER_TOKENS),
    reader=ReaderSizes(width=16, layers=1, heads=2, ffn_width=32, vocab_size=400),
)
QUESTIONS = 3
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models() -> Models:
    return build_models(TINY, seed=0)


@pytest.fixture(scope="module")
def texts(models: Models) -> list[str]:
    return draw_questions(models.built.match_codec.tokenizer, QUESTIONS, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def parts(models: Models, pixels: torch.Tensor, texts: list[str]) -> dict[str, list[Asked]]:
    """Questions in both modes that have passed all stages."""
    asked = ask(models, models.captioner, pixels, texts)
    pass_stages([part for mode in MODES for part in asked[mode]])
    return asked


@pytest.fixture(scope="module")
def measured() -> tuple[AnswerMeasurement, list[str]]:
    lines: list[str] = []
    return measure_tiny(torch.float32, lines), lines


def measure_tiny(dtype: torch.dtype, lines: list[str]) -> AnswerMeasurement:
    return measure_answer(TINY, questions=QUESTIONS, device=CPU, dtype=dtype, rounds=2, report=lines.append)


@torch.no_grad()
def pass_stages(parts: Sequence[Asked], stages: Sequence[str] = tuple(STAGES)) -> None:
    for name in stages:
        for part in parts:
            STAGES[name].run(part)


class TestStages:
    def test_heatmaps_points_and_sharpened_heatmaps_are_those_of_a_viewer(
        self, models: Models, parts: dict, pixels: torch.Tensor, texts: list[str]
    ):
        (grouped,) = parts[GROUPED]
        found = viewer(models).look(pixels, texts, torch.zeros(QUESTIONS, dtype=torch.int64))
        assert all(found.points)
        assert grouped.points == found.points
        torch.testing.assert_close(grouped.heatmaps, found.heatmaps)
        torch.testing.assert_close(grouped.refined, found.refined)
        assert not torch.equal(grouped.refined, grouped.heatmaps)

    def test_masks_are_asked_for_at_the_same_points_as_by_a_viewer(
        self, models: Models, parts: dict, pixels: torch.Tensor, texts: list[str]
    ):
        prompts: list[torch.Tensor] = []
        handle = models.segmenter.prompt_encoder.register_forward_hook(lambda *call: prompts.append(call[-1]))
        STAGES["masks"].run(parts[GROUPED][0])
        viewer(models).look(pixels, texts, torch.zeros(QUESTIONS, dtype=torch.int64))
        handle.remove()
        found, expected = prompts
        assert found.shape[0] == QUESTIONS
        torch.testing.assert_close(found, expected)

    def test_captions_and_read_answers_are_those_of_pnp_vqa(
        self, models: Models, parts: dict, pixels: torch.Tensor, texts: list[str]
    ):
        pnp = PnpPipeline(viewer(models), models.captioner, models.reader, TINY.pnp)
        expected = pnp.answer(pixels, texts, torch.zeros(QUESTIONS, dtype=torch.int64), texts)
        (grouped,) = parts[GROUPED]
        assert grouped.captions == [answer.captions for answer in expected]
        assert [answer.text for answer in grouped.answers] == [answer.text for answer in expected]
        torch.testing.assert_close(
            [answer.confidence for answer in grouped.answers], [answer.confidence for answer in expected]
        )

    def test_probabilities_are_those_of_the_models_own_answers(
        self, models: Models, parts: dict, pixels: torch.Tensor, texts: list[str]
    ):
        expected = [answer.confidence for answer in answer_directly(models.built, pixels, texts)]
        (grouped,) = parts[GROUPED]
        torch.testing.assert_close(grouped.probabilities, torch.tensor(expected))

    def test_images_are_encoded_once_for_a_group_and_once_for_each_question_alone(
        self, models: Models, pixels: torch.Tensor, texts: list[str]
    ):
        objective = models.built.objective
        encoders = [
            objective.tower("vision").embeddings,
            objective.tower("second_stream"),
            objective.fusion,
            models.captioner._model.vision_model.embeddings,
        ]
        parts = ask(models, models.captioner, pixels, texts)
        for mode, images in ((GROUPED, 1), (UNGROUPED, QUESTIONS)):
            runs = list(counting(encoders, lambda mode=mode: pass_stages(parts[mode])))
            assert runs == [images] * len(encoders), mode

    def test_pnp_leaves_out_the_direct_answer_and_direct_ends_with_it(self):
        assert [*PIPELINES["direct"].stages] == [*STAGES][:4]
        assert PIPELINES["direct"].stages[-1] == "direct_answer"
        assert set(PIPELINES["pnp"].stages) == set(STAGES) - {"direct_answer"}


def viewer(models: Models) -> Viewer:
    return Viewer(models.built.objective, models.built.match_codec, models.segmenter, TINY.model.guidance)


def counting(modules: Sequence[nn.Module], run) -> Iterator[int]:
    """How often each module runs."""
    calls = [0] * len(modules)

    def count(place: int) -> None:
        calls[place] += 1

    handles = [
        module.register_forward_hook(lambda *_, place=place: count(place)) for place, module in enumerate(modules)
    ]
    run()
    for handle in handles:
        handle.remove()
    yield from calls


class TestAgreement:
    def test_questions_together_and_alone_find_the_same(self, parts: dict):
        agreement = compare(parts)
        assert agreement.unequal == []
        assert agreement.heatmap_difference <= LARGEST_DIFFERENCE / 10
        assert agreement.probability_difference <= LARGEST_DIFFERENCE / 10
        captions = [captions for part in parts[UNGROUPED] for captions in part.captions]
        assert parts[GROUPED][0].captions == captions

    def test_a_model_that_sees_who_is_asked_beside_is_found_out(
        self, models: Models, pixels: torch.Tensor, texts: list[str]
    ):
        asked = ask(models, models.captioner, pixels, texts)
        pass_stages(asked[GROUPED], [*STAGES][:6])
        slightly = models.built.objective.fusion.register_forward_hook(lambda *call: call[-1] * 1.03 + 0.02)
        pass_stages(asked[UNGROUPED], [*STAGES][:6])
        slightly.remove()
        found = compare(asked)
        assert {"heatmaps", "probabilities of the direct answers"} <= set(found.unequal)

    def test_other_points_differ_however_close_their_weights_are(self, parts: dict):
        (grouped,) = parts[GROUPED]
        before = grouped.points
        first, *others = before[0]
        try:
            grouped.points = [[first._replace(column=first.column + 1), *others], *before[1:]]
            assert compare(parts).unequal == ["points"]
            grouped.points = [[first._replace(weight=first.weight * 0.999), *others], *before[1:]]
            assert compare(parts).unequal == []
        finally:
            grouped.points = before

    def test_a_difference_that_is_no_number_is_a_difference(self):
        nan = float("nan")
        agreement = Agreement(heatmap_difference=nan, probability_difference=nan, points_equal=True)
        assert agreement.unequal == ["heatmaps", "probabilities of the direct answers"]


class TestTiming:
    def test_both_modes_of_a_stage_run_side_by_side_in_the_order_asked_for(self, monkeypatch):
        ran: list[tuple[str, str]] = []
        monkeypatch.setattr(measuring, "_pass", lambda stage, parts, _: ran.append((stage, parts)))
        times = time_stages({GROUPED: GROUPED, UNGROUPED: UNGROUPED}, (UNGROUPED, GROUPED), CPU)
        assert ran == [(stage, mode) for stage in STAGES for mode in (UNGROUPED, GROUPED)]
        assert list(times) == list(STAGES)
        assert all(set(modes) == set(MODES) for modes in times.values())

    def test_rounds_begin_with_one_mode_and_the_other_by_turns(self, monkeypatch):
        orders: list[Sequence[str]] = []

        def fake(_: object, order: Sequence[str], __: torch.device) -> dict:
            orders.append(order)
            return {stage: {GROUPED: 1.0, UNGROUPED: 2.0} for stage in STAGES}

        monkeypatch.setattr(measuring, "time_stages", fake)
        lines: list[str] = []
        measuring._time_rounds({}, 3, CPU, lines.append)
        assert orders == [(GROUPED, UNGROUPED), (UNGROUPED, GROUPED), (GROUPED, UNGROUPED)]
        assert lines[0] == "round 1 of 3 took 30 s; about 60 s left"

    def test_progress_is_told_before_the_rounds_and_after_each(self, measured: tuple):
        _, lines = measured
        assert [line.split()[:2] for line in lines] == [
            ["warming", "up:"],
            ["2", "rounds"],
            ["round", "1"],
            ["round", "2"],
        ]
        assert f"with {FEW_CAPTIONS} captions" in lines[0]

    def test_the_estimate_scales_what_depends_on_the_captions_alone(self, models: Models):
        times = {stage: {GROUPED: 1.0, UNGROUPED: 1.0} for stage in STAGES}
        assert measuring._estimate(times, models) == pytest.approx(2 * (len(STAGES) - 2) + 2 * 2 * 15 / FEW_CAPTIONS)

    def test_rounds_write_all_captions_and_the_check_is_in_fp32_whatever_the_precision(self, measured: tuple):
        half = measure_tiny(torch.bfloat16, [])
        whole, _ = measured
        assert half.agreement == whole.agreement
        for found, name in ((half, "bfloat16"), (whole, "float32")):
            assert found.circumstances["dtype"] == name
            assert found.circumstances["captions_per_question"] == 15

    def test_a_ratio_is_taken_within_each_round_and_milliseconds_are_those_of_a_question(self, measured: tuple):
        figures = made_up(measured[0])
        assert figures.milliseconds(["fusion"], GROUPED) == pytest.approx(1000 * 2.0 / QUESTIONS)
        assert figures.milliseconds(["fusion"], UNGROUPED) == pytest.approx(1000 * 12.0 / QUESTIONS)
        assert figures.ratio(["fusion"]) == 5.0
        direct = PIPELINES["direct"].stages
        assert figures.milliseconds(direct, GROUPED) == pytest.approx(4 * 1000 * 2.0 / QUESTIONS)


def made_up(measured: AnswerMeasurement) -> AnswerMeasurement:
    """Every stage takes 1, 2 and 3 seconds for the questions together, and 5, 12 and 12 for them alone."""
    seconds = [{GROUPED: together, UNGROUPED: alone} for together, alone in ((1.0, 5.0), (2.0, 12.0), (3.0, 12.0))]
    return replace(measured, rounds=[dict.fromkeys(STAGES, modes) for modes in seconds])


class TestWorkload:
    def test_the_sizes_are_those_of_the_official_checkpoints(self):
        """google-t5/t5-base has 222,903,552 parameters, Salesforce/blip-image-captioning-base 247,414,076 in its file:
        there the output layer has a matrix of its own, and there are 512 positions instead of 128."""
        sizes = AnswerSizes()
        tokenizer = bert_tokenizer(sizes.model.scratch.vocab_size, sizes.pnp.captions.prompt)
        with torch.device("meta"):
            reader = T5ForConditionalGeneration(t5_config(sizes.reader))
            captioner = BlipForConditionalGeneration(scratch_blip_config(sizes.model.scratch, tokenizer))
        assert reader.num_parameters() == 222_903_552
        assert captioner.num_parameters() == 247_414_076 - 30_524 * 768 - 384 * 768
        assert sizes.pnp.captions == CaptionConfig()
        assert sizes.model.efficient_sam.variant == "vitt"

    def test_every_word_is_one_token_that_both_vocabularies_know(self):
        sizes = AnswerSizes()
        bert = bert_tokenizer(sizes.model.scratch.vocab_size, sizes.pnp.captions.prompt)
        t5 = t5_tokenizer(sizes.reader.vocab_size)
        assert (len(bert), len(t5)) == (30_524, 32_128)
        (question,) = draw_questions(bert, 1, torch.Generator().manual_seed(0))
        words = question.split()
        for tokenizer, text in ((bert, f"{question} {sizes.pnp.captions.prompt}"), (t5, f"{question} \\n . ?")):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.convert_ids_to_tokens(ids)[: len(words)] == words
        assert len(bert(sizes.pnp.captions.prompt, add_special_tokens=False)["input_ids"]) == 3

    def test_questions_have_as_many_tokens_as_those_of_gqa(self, models: Models):
        drawn = draw_questions(models.built.match_codec.tokenizer, 500, torch.Generator().manual_seed(0))
        lengths = [len(ids) for ids in models.built.match_codec.questions(drawn)[0]]
        mean = sum(length * count for length, count in GQA_QUESTION_TOKENS.items()) / sum(GQA_QUESTION_TOKENS.values())
        assert set(lengths) <= set(GQA_QUESTION_TOKENS)
        assert sum(lengths) / len(lengths) == pytest.approx(mean, rel=0.03)

    def test_contexts_hold_full_captions_and_their_lengths_are_those_that_t5_reads(self, models: Models, parts: dict):
        (grouped,) = parts[GROUPED]
        read: list[int] = []
        handle = models.reader._model.encoder.register_forward_hook(
            lambda _, __, named, ___: read.extend(named["attention_mask"].sum(dim=1).tolist()), with_kwargs=True
        )
        STAGES["reading"].run(grouped)
        handle.remove()
        assert sorted(grouped.context_lengths()) == sorted(read)
        assert len(read) == QUESTIONS * 15 / TINY.pnp.captions_per_context


class TestCommand:
    @pytest.fixture
    def fake(self, measured: tuple, monkeypatch) -> dict:
        """What the command asked to measure; nothing is measured."""
        asked: dict = {"figures": made_up(measured[0])}

        def measure(sizes: AnswerSizes, **options) -> AnswerMeasurement:
            asked.update(options, sizes=sizes)
            options["report"]("round 1 of 1 took 9 s; about 0 s left")
            return asked["figures"]

        monkeypatch.setattr("trainer.bench.measure_answer.measure_answer", measure)
        return asked

    def test_the_json_has_stages_and_both_ways_to_an_answer(self, fake: dict, tmp_path: Path, capsys):
        file = tmp_path / "answer.json"
        words = ["--questions", "3", "--rounds", "5", "--device", "cpu", "--json", str(file)]
        assert cli.main(["bench", "answer", *words]) == 0
        written = json.loads(file.read_text())
        assert list(written["stages"]) == list(STAGES)
        assert written["pipelines"]["pnp"]["ungrouped_milliseconds"] == pytest.approx(9 * 12_000 / QUESTIONS)
        assert written["pipelines"]["direct"]["ratio"] == 5.0
        assert len(written["stages"]["captions"]["grouped_milliseconds_by_round"]) == 3
        assert written["grouped_equals_ungrouped"] is True
        assert (fake["questions"], fake["rounds"], fake["dtype"]) == (3, 5, torch.float32)
        assert fake["sizes"] == AnswerSizes()
        captured = capsys.readouterr()
        assert captured.err == "round 1 of 1 took 9 s; about 0 s left\n"
        assert captured.out == table(fake["figures"]) + "\n"

    def test_by_default_four_questions_are_asked_in_three_rounds(self, fake: dict):
        assert cli.main(["bench", "answer", "--device", "cpu"]) == 0
        assert (fake["questions"], fake["rounds"]) == (4, 3)

    def test_what_differs_is_said_and_exit_code_1(self, fake: dict, tmp_path: Path, capsys):
        apart = Agreement(heatmap_difference=float("nan"), probability_difference=0.0, points_equal=False)
        fake["figures"] = replace(fake["figures"], agreement=apart)
        file = tmp_path / "answer.json"
        assert cli.main(["bench", "answer", "--device", "cpu", "--json", str(file)]) == 1
        assert "duoflow: the heatmaps, points of questions together differ" in capsys.readouterr().err
        written = json.loads(file.read_text())
        assert (written["heatmap_difference"], written["points_equal"]) == (None, False)
        assert written["grouped_equals_ungrouped"] is False

    def test_the_table_has_a_line_for_every_stage_and_way(self, measured: tuple):
        lines = table(made_up(measured[0])).splitlines()
        names = [*STAGES, *PIPELINES]
        assert [line.split()[0] for line in lines if "5.00x" in line] == names

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (["--device", "cuda"], "--device cuda: torch"),
            (["--questions", "0"], "--questions 0: expected at least 1"),
            (["--rounds", "0"], "--rounds 0: expected at least 1"),
            (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        ],
    )
    def test_mistakes_are_one_line_and_exit_code_2(self, monkeypatch, capsys, words: list[str], line: str):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert cli.main(["bench", "answer", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"duoflow: {line}")
        assert error.count("\n") == 1
