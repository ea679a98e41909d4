"""From heatmap to answer: each question as if it were alone, the image's part computed once for all of them."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import BlipForImageTextRetrieval

from model.build import BuiltModel
from model.config import CaptionConfig, GuidanceConfig, ImageTokens, PnpConfig
from model.efficient_sam.weights import load_segmenter
from model.pixels import blip_pixels
from model.pnp.captions import load_captioner
from model.pnp.fid import load_reader
from model.pnp.pipeline import PnpAnswer, PnpPipeline
from model.pnp.viewer import Viewer
from shards.errors import ConfigError
from tests.models import IMAGE_SIZE, SCRATCH, tiny_captioner, tiny_checkpoints, tiny_model, tiny_t5
from tests.unit.model.looking.test_heatmap import plain_heatmap

QUESTIONS = (
    "what color is the big circle",
    "is there a red square",
    "what color is the square",
    "is the circle to the left of the square",
    "what is the color",
    "is there a blue circle",
    "is there a red circle to the left",
    "what is blue",
)
IMAGE_OF_QUESTION = (0, 0, 0, 1, 1, 2, 2, 2)
KEYS = tuple(f"{number:04d}" for number in range(len(QUESTIONS)))
PNP = PnpConfig(
    captions=CaptionConfig(num_captions=3, num_patches=4, prompt="the ", min_tokens=3, max_tokens=8, max_rounds=3),
    captions_per_context=2,
    max_answer_tokens=5,
    seed=4,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints")
    tiny_checkpoints(directory)
    tiny_captioner(directory / "captioner")
    tiny_t5(directory / "t5")
    return directory


def model(directory: Path, second_stream: str) -> BuiltModel:
    built = tiny_model(
        vision=str(directory / "itm"),
        match=str(directory / "itm"),
        answer=str(directory / "vqa"),
        second_stream=second_stream,
        efficient_sam={"variant": "custom", "checkpoint": str(directory / "sam.safetensors")},
        freeze=("vision", "second_stream", "match", "answer"),
    )
    built.objective.eval()
    return built


def viewer_past(built: BuiltModel, looks_with: ImageTokens) -> Viewer:
    """Heatmaps alone, with the first layer of the matching tower."""
    return Viewer(built.objective, built.match_codec, None, GuidanceConfig(block=0), looks_with=looks_with)


def pipeline(directory: Path, second_stream: str = "efficient_sam", **guidance: object) -> PnpPipeline:
    built = model(directory, second_stream)
    stream = built.objective.tower("second_stream")
    shared = stream.encoder if second_stream.startswith("efficient_sam") else None
    segmenter = load_segmenter(directory / "sam.safetensors", image_encoder=shared)
    looks = GuidanceConfig.model_validate({"block": 0, "min_share": 0.6, "smoothing": 0.0} | guidance)
    viewer = Viewer(built.objective, built.match_codec, segmenter.eval(), looks)
    captioner = load_captioner(str(directory / "captioner"), PNP.captions)
    return PnpPipeline(viewer, captioner, load_reader(str(directory / "t5")), PNP)


def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    images = 1 + max(IMAGE_OF_QUESTION)
    return torch.randint(0, 256, (images, 3, IMAGE_SIZE, IMAGE_SIZE), generator=generator).to(torch.uint8)


def answers(pnp: PnpPipeline, numbers: Sequence[int]) -> list[PnpAnswer]:
    """The answers to some of the questions, in one call over the images that they are about."""
    images = sorted({IMAGE_OF_QUESTION[number] for number in numbers})
    rows = torch.tensor([images.index(IMAGE_OF_QUESTION[number]) for number in numbers])
    asked = [QUESTIONS[number] for number in numbers]
    return pnp.answer(pixels()[images], asked, rows, [KEYS[number] for number in numbers])


def said(found: Sequence[PnpAnswer]) -> list[tuple[str, list[str]]]:
    return [(answer.text, answer.captions) for answer in found]


@pytest.mark.parametrize("second_stream", ["efficient_sam", "efficient_sam_masks", "blip", "none"])
def test_eight_questions_at_once_are_answered_like_each_alone(directory: Path, second_stream: str) -> None:
    pnp = pipeline(directory, second_stream)
    together = answers(pnp, range(8))
    alone = [answers(pnp, [number])[0] for number in range(8)]
    assert said(together) == said(alone)
    assert [answer.confidence for answer in together] == pytest.approx([a.confidence for a in alone], rel=1e-4)
    assert all(answer.captions for answer in together)
    assert len({tuple(answer.captions) for answer in together}) > 1, "captions depend on the question"


def test_the_same_seed_gives_the_same_answers_and_another_one_other_captions(directory: Path) -> None:
    first, again = answers(pipeline(directory), range(8)), answers(pipeline(directory), range(8))
    assert first == again
    other = pipeline(directory)
    other._config = PNP.model_copy(update={"seed": 5})
    assert said(answers(other, range(8))) != said(first)


def test_what_belongs_to_an_image_is_computed_once_for_its_questions(directory: Path) -> None:
    pnp = pipeline(directory)
    objective = pnp.viewer._objective
    encoded = {"vision": 0, "second_stream": 0, "captioner": 0}

    def count(name: str):
        def hook(_, inputs, __) -> None:
            encoded[name] += len(inputs[0])

        return hook

    objective.tower("vision").embeddings.register_forward_hook(count("vision"))
    objective.tower("second_stream").encoder.register_forward_hook(count("second_stream"))
    pnp._captioner._model.vision_model.embeddings.register_forward_hook(count("captioner"))
    answers(pnp, range(8))
    assert encoded == dict.fromkeys(encoded, 3)


def test_an_answer_that_is_read_along_moves_the_heat(directory: Path) -> None:
    viewer, rows = pipeline(directory).viewer, torch.tensor(IMAGE_OF_QUESTION)
    alone = viewer.look(pixels(), QUESTIONS, rows)
    red, blue = (viewer.look(pixels(), QUESTIONS, rows, [color] * len(QUESTIONS)) for color in ("red", "blue"))
    for first, second in ((alone, red), (red, blue)):
        assert not torch.allclose(first.heatmaps, second.heatmaps)


@pytest.mark.parametrize("second_stream", ["efficient_sam", "blip", "none"])
def test_past_the_fusion_the_heatmap_is_that_of_the_plain_transformers_model(
    directory: Path, second_stream: str
) -> None:
    built, rows = model(directory, second_stream), torch.tensor(IMAGE_OF_QUESTION)
    plain = BlipForImageTextRetrieval.from_pretrained(directory / "itm").eval()
    inputs = blip_pixels(pixels(), IMAGE_SIZE, torch.float32)
    ids, _ = built.match_codec.questions(QUESTIONS)
    expected = torch.stack(
        [plain_heatmap(plain, torch.tensor(ids[n]), inputs[image], 0) for n, image in enumerate(IMAGE_OF_QUESTION)]
    )
    assert (expected.amax(dim=(1, 2)) > 0).all(), "a cold heatmap proves nothing"
    with_fusion = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in built.objective.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        found = viewer_past(built, "plain").look(pixels(), QUESTIONS, rows)
        torch.testing.assert_close(found.heatmaps, expected, atol=1e-5 * float(expected.max()), rtol=1e-4)
        with_fusion.append(viewer_past(built, "fused").look(pixels(), QUESTIONS, rows).heatmaps)
    assert not torch.allclose(with_fusion[0], expected, rtol=0.1)
    assert not torch.allclose(with_fusion[0], with_fusion[1], rtol=0.1)


def test_past_the_fusion_a_second_stream_that_nothing_reads_is_not_computed(directory: Path) -> None:
    built, rows = model(directory, "blip"), torch.tensor(IMAGE_OF_QUESTION)
    calls: list[object] = []
    built.objective.tower("second_stream").register_forward_hook(lambda *call: calls.append(call))
    viewer_past(built, "plain").look(pixels(), QUESTIONS, rows)
    assert calls == []
    viewer_past(built, "fused").look(pixels(), QUESTIONS, rows)
    assert len(calls) == 1


def test_a_matching_tower_that_reads_another_width_cannot_look_past_the_fusion(directory: Path) -> None:
    towers = {"match": str(directory / "itm"), "answer": str(directory / "vqa"), "freeze": ("match", "answer")}
    built = tiny_model(**towers, scratch=SCRATCH | {"width": 36})
    assert viewer_past(built, "fused").look(pixels(), QUESTIONS, torch.tensor(IMAGE_OF_QUESTION)).heatmaps.any()
    with pytest.raises(
        ConfigError, match=r"pnp\.looks_with: plain .* 36 wide, and model\.match reads 24; .* use fused"
    ):
        viewer_past(built, "plain")


def test_the_mask_changes_what_is_described(directory: Path) -> None:
    masked, plain = pipeline(directory, blend=1.0), pipeline(directory, blend=0.0)
    rows = torch.tensor(IMAGE_OF_QUESTION)
    looks = [pnp.viewer.look(pixels(), QUESTIONS, rows) for pnp in (masked, plain)]
    assert torch.equal(looks[0].heatmaps, looks[1].heatmaps)
    pointed = [bool(points) for points in looks[0].points]
    assert any(pointed)
    changed = [not torch.equal(a, b) for a, b in zip(looks[0].refined, looks[1].refined, strict=True)]
    assert changed == pointed
