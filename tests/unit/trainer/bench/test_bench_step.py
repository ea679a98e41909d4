"""The step benchmark: every path computes the same, does the work that its name says, and is timed in turns."""

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from model.towers.blip import encode_image
from shards.errors import UserError
from shards.read.collate import IGNORED_LABEL
from trainer import cli
from trainer.bench.density import DENSITIES, questions_of_images, questions_of_visits, visit_sizes
from trainer.bench.measure import (
    DEFAULTS,
    LARGEST_DIFFERENCE,
    LARGEST_EXACT_DIFFERENCE,
    LARGEST_ROUNDED_LOSS,
    InThisProcess,
    Measurement,
    Processes,
    measure,
    path_names,
)
from trainer.bench.paths import (
    CACHED,
    DESCRIPTIONS,
    GROUPED,
    IMAGE_PER_QUESTION,
    IMAGES_ONCE,
    KEYS_PER_ROW,
    PLAIN,
    path_of,
)
from trainer.bench.reference import PlainPath
from trainer.bench.rounds import speedup, time_rounds
from trainer.bench.step import table
from trainer.bench.step_path import Request, Timed, relative_difference
from trainer.bench.workload import (
    ANSWER_TOKENS,
    GQA_QUESTION_TOKENS,
    Sizes,
    Workload,
    build_workload,
    draw_batch,
)

TINY = Sizes(
    image_size=32,
    patch_size=8,
    vision_width=16,
    vision_layers=1,
    vision_heads=2,
    text_width=16,
    text_layers=2,
    text_heads=2,
    vocab_size=130,
    map_width=4,
    fusion_heads=2,
)
IMAGES, QUESTIONS_PER_IMAGE = 2, 3
QUESTIONS_OF = (QUESTIONS_PER_IMAGE,) * IMAGES
CPU = torch.device("cpu")
QUESTIONS, PAIRS = 6, 12


@pytest.fixture(scope="module")
def measured() -> Measurement:
    return measure_tiny(torch.float32, with_reference=True)


@pytest.fixture
def workload() -> Workload:
    return build_workload(TINY, questions=QUESTIONS_OF)


def measure_tiny(dtype: torch.dtype, *, with_reference: bool) -> Measurement:
    return measure(
        TINY,
        questions=QUESTIONS_OF,
        names=path_names(CPU, reference=with_reference, cached=False, density=False),
        device=CPU,
        dtype=dtype,
        rounds=2,
        seconds_at_least=0.0,
        computed=InThisProcess(),
    )


def timed(seconds: float, loss: float = 1.0) -> Timed:
    return Timed(
        loss=loss, seconds=seconds, user_seconds=seconds, system_seconds=0.0, steps=1, peak_bytes=10**9, load=0.5
    )


def gradients_of(workload: Workload, path: Callable) -> list[torch.Tensor]:
    workload.objective.zero_grad()
    for loss in path():
        loss.backward()
    return [parameter.grad.clone() for parameter in workload.objective.parameters()]


def rows_through(module: nn.Module, path: Callable) -> int:
    """How many rows a module reads while a path is computed."""
    seen = []
    handle = module.register_forward_hook(
        lambda _, inputs, named, __: seen.append(len([*inputs, *named.values()][0])), with_kwargs=True
    )
    for loss in path():
        del loss
    handle.remove()
    return sum(seen)


class TestEquality:
    def test_every_path_has_the_gradients_and_the_loss_of_the_plain_one(self, measured: Measurement):
        assert list(measured.differences) == list(DESCRIPTIONS)
        for name, difference in measured.differences.items():
            rounded = name == CACHED
            assert difference <= (1e-2 if rounded else LARGEST_DIFFERENCE), name
            allowed = LARGEST_ROUNDED_LOSS if rounded else 1e-5
            assert measured.losses[name] == pytest.approx(measured.losses[PLAIN], rel=allowed), name
        assert measured.differences[CACHED] > 0
        assert measured.unequal == []

    def test_a_loss_that_differs_in_any_round_is_found_out(self, measured: Measurement):
        wrong = timed(1.0, loss=1.01 * measured.losses[PLAIN])
        for name in (CACHED, IMAGES_ONCE):
            rounds = [measured.rounds[0], {**measured.rounds[1], name: wrong}]
            assert replace(measured, rounds=rounds).unequal == [f"{name} (loss)"]

    def test_the_grouped_path_encodes_images_as_the_plain_one(self, measured: Measurement):
        assert measured.encoders.tokens <= 1e-7
        assert measured.encoders.exact <= LARGEST_EXACT_DIFFERENCE

    def test_a_vision_forward_that_mixes_up_images_is_found_out(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("model.towers.vision.encode_image", lambda *a, **k: encode_image(*a, **k).flip(0))
        wrong = measure_tiny(torch.float32, with_reference=True)
        named = [name for name in wrong.unequal if not name.endswith(" (loss)")]
        assert named == [GROUPED, CACHED, KEYS_PER_ROW, "image tokens", "grouped in fp64"]
        assert {name.removesuffix(" (loss)") for name in wrong.unequal} == set(named)

    def test_a_decoder_that_reads_the_padding_of_questions_is_found_out(self, workload: Workload):
        expected = gradients_of(workload, path_of(workload, GROUPED))
        plain = path_of(workload, PLAIN)
        decoder = workload.objective.tower("answer").text_decoder
        for layer in decoder.bert.encoder.layer:
            layer.crossattention.self.register_forward_pre_hook(
                lambda _, inputs, named: (inputs, {**named, "encoder_attention_mask": None}), with_kwargs=True
            )
        assert relative_difference(gradients_of(workload, plain), expected) > 100 * LARGEST_DIFFERENCE

    def test_gradients_that_are_not_finite_never_count_as_equal(self, measured: Measurement):
        nan = relative_difference([torch.tensor([float("nan")])], [torch.ones(1)])
        assert replace(measured, differences={PLAIN: 0.0, GROUPED: nan}).unequal == [GROUPED]


class TestWork:
    @pytest.mark.parametrize(
        ("name", "encoded", "fused", "projected"),
        [
            (GROUPED, IMAGES, IMAGES, IMAGES),
            (CACHED, 0, IMAGES, IMAGES),
            (KEYS_PER_ROW, IMAGES, IMAGES, QUESTIONS),
            (IMAGES_ONCE, IMAGES, QUESTIONS + PAIRS, QUESTIONS),
            (IMAGE_PER_QUESTION, QUESTIONS, QUESTIONS, QUESTIONS),
            (PLAIN, QUESTIONS + PAIRS, QUESTIONS + PAIRS, QUESTIONS),
        ],
    )
    def test_a_path_encodes_fuses_and_projects_as_often_as_it_says(
        self, workload: Workload, name: str, encoded: int, fused: int, projected: int
    ):
        objective, path = workload.objective, path_of(workload, name)
        key = objective.tower("answer").text_encoder.encoder.layer[0].crossattention.self.key
        assert rows_through(objective.tower("vision").embeddings, path) == encoded
        assert rows_through(objective.fusion, path) == fused
        assert rows_through(key, path) == projected

    def test_plain_rows_are_padded_to_the_longest_and_carry_their_image(self, workload: Workload):
        plain, batch = PlainPath(workload), workload.batch
        for rows, block in ((plain.questions, batch.blocks["ask"]), (plain.pairs, batch.blocks["match"])):
            assert rows.ids.shape[1] == int(block.mask.sum(dim=1).max()) < block.mask.shape[1]
            assert torch.equal(rows.mask.sum(dim=1), block.mask.sum(dim=1))
            assert torch.equal(rows.pixels, batch.shown[block.image])

    def test_without_the_reference_nothing_but_the_grouped_path_runs(self):
        alone = measure_tiny(torch.float32, with_reference=False)
        assert list(alone.losses) == [GROUPED]
        assert alone.differences == {}
        assert "ratio" not in alone.as_json()

    def test_gradients_are_compared_in_fp32_whatever_the_precision_of_the_timing(self, measured: Measurement):
        half = measure_tiny(torch.bfloat16, with_reference=True)
        assert half.differences == pytest.approx(measured.differences, abs=LARGEST_DIFFERENCE)
        assert half.circumstances["dtype"] == "bfloat16"


class TestBatch:
    def test_lengths_come_from_the_histograms(self):
        batch = draw_batch(TINY, questions=[20] * 50, generator=torch.Generator().manual_seed(0))
        ask = batch.blocks["ask"]
        questions = Counter(ask.mask.sum(dim=1).tolist())
        answers = Counter((ask.targets.labels != IGNORED_LABEL).sum(dim=1).tolist())
        assert set(questions) <= set(GQA_QUESTION_TOKENS)
        assert set(answers) == {length + 1 for length in ANSWER_TOKENS}
        mean = sum(length * count for length, count in GQA_QUESTION_TOKENS.items()) / sum(GQA_QUESTION_TOKENS.values())
        assert sum(questions.elements()) / 1000 == pytest.approx(mean, rel=0.03)

    def test_every_question_has_its_answer_and_a_wrong_one_behind_it(self, workload: Workload):
        ask, match = (workload.batch.blocks[name] for name in ("ask", "match"))
        for pair, question in enumerate(match.item.tolist()):
            asked = ask.ids[question][ask.mask[question]]
            matched = match.ids[pair][match.mask[pair]]
            assert torch.equal(matched[: len(asked)], asked)
            assert match.image[pair] == ask.image[question]
            answer = ask.targets.labels[question][ask.targets.labels[question] != IGNORED_LABEL]
            assert torch.equal(matched[len(asked) :], answer) == bool(match.labels[pair])

    def test_the_same_seed_draws_the_same_step(self):
        first, second, other = (
            draw_batch(TINY, questions=QUESTIONS_OF, generator=torch.Generator().manual_seed(seed))
            for seed in (4, 4, 5)
        )
        assert torch.equal(first.blocks["match"].ids, second.blocks["match"].ids)
        assert torch.equal(first.shown, second.shown)
        assert not torch.equal(first.shown, other.shown)

    def test_images_may_have_different_numbers_of_questions(self):
        batch = draw_batch(TINY, questions=[1, 4], generator=torch.Generator().manual_seed(0))
        assert batch.blocks["ask"].image.tolist() == [0, 1, 1, 1, 1]
        assert (batch.blocks["ask"].rows_per_image, batch.blocks["match"].rows_per_image) == (4, 8)


class TestDensity:
    @pytest.mark.parametrize("name", DENSITIES)
    def test_images_are_asked_as_much_as_in_gqa_on_average(self, name: str):
        assert questions_of_images(DENSITIES[name].mean).mean() == pytest.approx(DENSITIES[name].mean, rel=0.01)

    def test_visits_are_cut_as_the_loader_cuts_them(self):
        for name, (least, most) in {"gqa_balanced": (8.0, 11.0), "gqa_all": (15.0, 16.0)}.items():
            sizes = visit_sizes(name)
            assert sizes.max() <= 16
            assert least < sizes.mean() < most

    def test_a_step_has_visits_from_all_over_the_distribution(self):
        few, many = (questions_of_visits("gqa_balanced", visits) for visits in (2, 64))
        assert few[0] < few[1]
        assert sum(many) / 64 == pytest.approx(visit_sizes("gqa_balanced").mean(), rel=0.03)
        assert questions_of_visits(None, 3) == (16, 16, 16)


class TestProcesses:
    REQUEST = Request(
        path=GROUPED, sizes=TINY, questions=(1, 2), seed=1, device="cpu", dtype="float32", seconds_at_least=0.0
    )

    def test_a_request_travels_as_json(self):
        assert Request.decode(json.dumps(asdict(self.REQUEST))) == self.REQUEST

    def test_a_path_has_a_process_with_the_environment_that_it_is_given(self):
        found = Processes().time(self.REQUEST, os.environ)
        assert found.loss == pytest.approx(InThisProcess().time(self.REQUEST, {}).loss, rel=1e-6)
        assert found.seconds > 0 < found.peak_bytes

    def test_a_path_that_fails_is_one_line(self):
        wrong = replace(self.REQUEST, device="nowhere")
        with pytest.raises(UserError, match=r"bench step: path grouped ended with 1: RuntimeError: .*nowhere"):
            Processes().time(wrong, os.environ)

    def test_each_round_begins_with_another_path_and_all_but_the_defaults_keep_freed_memory(self, monkeypatch):
        monkeypatch.setenv("MALLOC_TOP_PAD_", "7")
        started = []

        class Fake(InThisProcess):
            def time(self, request: Request, environment: dict) -> Timed:
                started.append((request.path, environment.get("MALLOC_MMAP_MAX_"), environment["MALLOC_TOP_PAD_"]))
                return timed(1.0)

        names = [GROUPED, CACHED, GROUPED + DEFAULTS]
        shared = {"device": CPU, "dtype": torch.float32, "computed": Fake()}
        measure(TINY, questions=QUESTIONS_OF, names=names, rounds=2, **shared)
        grouped, cached, defaults = ((GROUPED, "0", "7"), (CACHED, "0", "7"), (GROUPED, None, "7"))
        assert started == [grouped, cached, defaults, cached, defaults, grouped]


class TestRounds:
    def test_rounds_alternate_and_each_begins_with_another_step(self):
        ran: list[str] = []
        steps = {name: lambda name=name: ran.append(name) for name in "abc"}
        time_rounds(steps, rounds=4)
        assert "".join(ran) == "abcbcacababc"

    def test_short_steps_repeat_and_their_mean_counts(self):
        now = [0.0]

        def clock() -> float:
            return now[0]

        def step(seconds: float) -> None:
            now[0] += seconds

        steps = {"short": lambda: step(0.25), "long": lambda: step(3.0)}
        (seconds,) = time_rounds(steps, rounds=1, seconds_at_least=1.0, clock=clock)
        assert seconds == {"short": 0.25, "long": 3.0}
        assert now[0] == 4 * 0.25 + 3.0

    def test_a_ratio_is_taken_within_each_round_before_the_median(self):
        rounds = [{"fast": 1.0, "slow": 8.0}, {"fast": 2.0, "slow": 20.0}, {"fast": 1.0, "slow": 12.0}]
        assert speedup(rounds, "fast", "slow") == 10.0


class TestCommand:
    @pytest.fixture
    def figures(self, measured: Measurement) -> Measurement:
        """Made-up times: grouped 1 s, cached 0.5 s, the others 2, 3, 4 and 12 s; with malloc's defaults 2 and 16 s."""
        names = path_names(CPU, reference=True, cached=True, density=False)
        times = zip(names, (1.0, 0.5, 2.0, 3.0, 4.0, 12.0, 2.0, 16.0), strict=True)
        found = {name: replace(measured.rounds[0][name], seconds=seconds) for name, seconds in times}
        return replace(measured, rounds=[found] * 3)

    @pytest.fixture
    def fake(self, figures: Measurement, monkeypatch) -> dict:
        """What the command asked to measure; nothing is measured."""
        asked: dict = {"figures": figures}
        monkeypatch.setattr(
            "trainer.bench.measure.measure",
            lambda sizes, **options: asked.update(options, sizes=sizes) or asked["figures"],
        )
        return asked

    def test_the_json_has_the_ratios_to_the_plain_path(self, fake: dict, tmp_path: Path, capsys):
        file = tmp_path / "step.json"
        assert cli.main(["bench", "step", "--reference", "--device", "cpu", "--json", str(file)]) == 0
        written = json.loads(file.read_text())
        assert written["ratio"] == 12.0
        assert written["ratio_cached"] == 24.0
        assert written["ratio_with_malloc_defaults"] == 8.0
        assert written["paths"][PLAIN]["spread"] == 0.0
        assert written["machine"]["cores"] >= 1
        assert written["ratio_without_shared_keys_values"] == 6.0
        assert written["ratio_with_image_deduplication_only"] == 4.0
        assert written["ratio_to_one_fused_image_per_question"] == 4.0
        assert written["paths"][PLAIN]["questions_per_second"] == QUESTIONS / 12
        assert written["gradients_equal"] is True
        assert capsys.readouterr().out.count("x") >= len(DESCRIPTIONS)
        assert (fake["sizes"], fake["questions"]) == (Sizes(), (16, 16))
        assert (fake["dtype"], fake["rounds"]) == (torch.float32, 3)
        assert fake["names"] == path_names(CPU, reference=True, cached=False, density=False)

    def test_unequal_gradients_are_exit_code_1_and_said(self, fake: dict, capsys):
        fake["figures"] = replace(fake["figures"], differences={**dict.fromkeys(DESCRIPTIONS, 0.0), GROUPED: 1e-3})
        assert cli.main(["bench", "step", "--reference", "--device", "cpu"]) == 1
        assert "duoflow: grouped: losses or gradients differ" in capsys.readouterr().err

    def test_the_table_has_a_line_per_path(self, figures: Measurement):
        lines = table(figures).splitlines()[4:]
        assert [line.split()[0] for line in lines if line][: len(figures.names)] == figures.names

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (["--device", "cuda"], "--device cuda: torch"),
            (["--images", "0"], "--images 0: expected at least 1"),
            (["--rounds", "0"], "--rounds 0: expected at least 1"),
            (["--density", "vqa"], "argument --density: invalid choice: 'vqa'"),
            (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        ],
    )
    def test_mistakes_are_one_line_and_exit_code_2(self, monkeypatch, capsys, words: list[str], line: str):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert cli.main(["bench", "step", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"duoflow: {line}")
        assert error.count("\n") == 1
