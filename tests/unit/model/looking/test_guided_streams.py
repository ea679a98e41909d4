"""Second streams beside the plain one: EfficientSAM weighed by each question's mask, and a second BLIP."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BlipConfig, BlipForImageTextRetrieval

from model.build import BuiltModel
from model.config import GuidanceConfig
from model.fusion_objective import FusionObjective
from model.looking.guidance import Look, look
from model.looking.heatmap import text_heatmaps
from model.looking.points import Point, choose_points, refine_heatmap
from model.looking.second_stream import EfficientSamMaskStream
from model.rows import Grouping
from model.towers.tokenizer import build_tokenizer
from shards.errors import ConfigError
from shards.read.collate import Batch
from tests.models import WORDS, random_batch, rows_of, tiny_blip, tiny_checkpoints, tiny_model, tiny_t5

ROWS = (2, 1, 3)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_checkpoints(tmp_path_factory.mktemp("checkpoints"))


def guided(checkpoints: dict[str, str], **changes: object) -> BuiltModel:
    settings = {
        "vision": checkpoints["itm"],
        "match": checkpoints["itm"],
        "answer": checkpoints["vqa"],
        "second_stream": "efficient_sam_masks",
        "efficient_sam": {"variant": "custom", "checkpoint": checkpoints["sam"]},
        "guidance": {"block": 0, "min_share": 0.6, "smoothing": 0.0},
        "freeze": ("vision", "second_stream", "match", "answer"),
    }
    return tiny_model(**(settings | changes))


def one_question(batch: Batch, number: int) -> Batch:
    """The part of a batch that is about one question."""
    image = batch.blocks["ask"].image[number]
    blocks = {name: rows_of(block, block.item == number) for name, block in batch.blocks.items()}
    return batch._replace(shown=batch.shown[[int(image)]], blocks=blocks)


def test_a_question_is_answered_as_if_it_were_alone_with_its_mask(checkpoints: dict[str, str]) -> None:
    objective, batch = guided(checkpoints).objective.eval(), random_batch(ROWS)
    each = [objective(one_question(batch, number)) for number in range(sum(ROWS))]
    together = objective(batch)
    torch.testing.assert_close(together.loss, torch.stack([part.loss for part in each]).sum())
    torch.testing.assert_close(together.sums, torch.stack([part.sums for part in each]).sum(dim=0))
    answers = objective.evaluate(batch).predictions["answer"]
    alone = [objective.evaluate(one_question(batch, number)).predictions["answer"][0] for number in range(sum(ROWS))]
    assert [row.tolist()[: len(found)] for row, found in zip(answers, alone, strict=True)] == [
        found.tolist() for found in alone
    ]


def test_questions_of_one_image_read_different_tokens(checkpoints: dict[str, str]) -> None:
    objective, batch = guided(checkpoints).objective.eval(), random_batch((4,))
    fused, rows = objective._see(batch)
    assert len(fused) == 4
    assert rows.blocks["ask"].image.tolist() == [0, 1, 2, 3]
    assert rows.blocks["match"].image.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert not torch.allclose(fused[0], fused[1])


def test_only_the_fusion_learns(checkpoints: dict[str, str]) -> None:
    objective = guided(checkpoints).objective
    objective(random_batch(ROWS)).loss.backward()
    assert {name.partition(".")[0] for name, _ in objective.named_parameters()} == {"fusion"}
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert all(p.grad is None for _, tower in objective.frozen_towers() for p in tower.parameters())


def test_masks_weigh_the_map_and_a_question_without_points_keeps_it() -> None:
    maps, heat = torch.ones(1, 3, 4, 4), torch.zeros(2, 2, 2)
    masks = torch.zeros(2, 8, 8)
    masks[:, :4] = 1.0
    found = Look(heat, [[Point(0, 0, 1.0)], []], masks, torch.ones(2), heat)
    weighed = EfficientSamMaskStream.weigh(maps, torch.tensor([0, 0]), found, blend=0.75)
    torch.testing.assert_close(weighed[0, :, :2], torch.ones(3, 2, 4))
    torch.testing.assert_close(weighed[0, :, 2:], torch.full((3, 2, 4), 0.25))
    torch.testing.assert_close(weighed[1], maps[0])


def looked(objective: FusionObjective, batch: Batch, config: GuidanceConfig) -> tuple[Look, Tensor]:
    stream = objective.tower("second_stream")
    tokens, maps = objective.image_tokens(batch.shown), stream(batch.shown)
    ask = batch.blocks["ask"]
    grouping = Grouping.of(ask.image, num_images=len(maps), rows_per_image=ask.rows_per_image)
    texts, segmenter = (ask.ids, ask.mask), stream.segmenter
    found = look(
        objective.tower("match"), *texts, tokens, grouping, segmenter=segmenter, embeddings=maps, config=config
    )
    return found, maps


def test_a_look_is_made_of_the_heatmap_its_points_and_the_mask_at_them(checkpoints: dict[str, str]) -> None:
    objective, batch = guided(checkpoints).objective.eval(), random_batch(ROWS)
    config = GuidanceConfig(block=0, min_share=0.6, smoothing=0.0, num_points=2)
    found, maps = looked(objective, batch, config)
    segmenter = objective.tower("second_stream").segmenter
    grid = found.heatmaps.shape[-1]
    assert any(found.points), "some question points somewhere"
    for row, image in enumerate(batch.blocks["ask"].image.tolist()):
        points = choose_points(found.heatmaps[row], num_points=2, min_share=0.6, smoothing=0.0, seed=config.seed)
        assert found.points[row] == points
        if not points:
            torch.testing.assert_close(found.refined[row], found.heatmaps[row])
            continue
        places = torch.tensor([[[(p.column + 0.5) / grid, (p.row + 0.5) / grid] for p in points]])
        with torch.no_grad():
            labels = torch.ones(1, len(points), dtype=torch.int64)
            logits, iou = segmenter.masks_for(maps, torch.tensor([image]), places, labels)
        torch.testing.assert_close(found.masks[row], logits[0].sigmoid(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.iou[row], iou[0], atol=1e-5, rtol=1e-5)
        expected = refine_heatmap(found.heatmaps[row].numpy(), found.masks[row].numpy(), blend=config.blend)
        torch.testing.assert_close(found.refined[row].numpy(), expected)


def test_without_a_segmenter_the_heatmap_stays(checkpoints: dict[str, str]) -> None:
    objective, batch = guided(checkpoints).objective.eval(), random_batch(ROWS)
    found, _ = looked(objective, batch, GuidanceConfig(block=0, blend=0.0))
    assert found.masks is None
    assert torch.equal(found.refined, found.heatmaps)


def test_towers_with_other_vocabularies_cannot_be_guided(checkpoints: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"efficient_sam_masks needs one vocabulary for questions"):
        guided(checkpoints, answer=tiny_t5(tmp_path))


def wider_vision(directory: Path) -> str:
    """A BLIP whose vision tower is wider than the text towers of `tiny_checkpoints` read."""
    config = tiny_blip().config
    vision = config.vision_config.to_dict() | {"hidden_size": 36}
    wider = BlipConfig(text_config=config.text_config.to_dict(), vision_config=vision, image_text_hidden_size=24)
    BlipForImageTextRetrieval(wider).save_pretrained(directory)
    build_tokenizer(WORDS, vocab_size=60).save_pretrained(directory)
    return str(directory)


def test_towers_of_other_widths_cannot_be_guided_since_nothing_fits_the_tokens_before_the_heatmap(
    checkpoints: dict[str, str], tmp_path: Path
) -> None:
    wide = {"vision": wider_vision(tmp_path)}
    with pytest.raises(ConfigError) as error:
        guided(checkpoints, **wide)
    assert re.fullmatch(
        r"model\.second_stream: efficient_sam_masks .* model\.vision, which are 36 wide, and model\.match reads 24; .* "
        r"use efficient_sam",
        str(error.value),
    )
    assert guided(checkpoints, **wide, second_stream="efficient_sam").objective(random_batch(ROWS)).loss.isfinite()


class NoWaiting(TorchDispatchMode):
    """Refuses to read a number out of a tensor, for which a GPU would have to finish all that it was given."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number was read from a tensor"
        return func(*args, **(kwargs or {}))


def test_no_heatmap_of_guided_training_waits_for_a_number_on_the_gpu(
    checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, batch, heatmaps = guided(checkpoints).objective, random_batch(ROWS), []

    def without_waiting(*arguments: object, **options: object) -> Tensor:
        with NoWaiting():
            heatmaps.append(text_heatmaps(*arguments, **options))
        return heatmaps[-1]

    monkeypatch.setattr("model.looking.guidance.text_heatmaps", without_waiting)
    loss = objective(batch).loss
    assert [len(found) for found in heatmaps] == [sum(ROWS)]
    assert heatmaps[0].any()
    monkeypatch.undo()
    assert torch.equal(objective(batch).loss, loss)


def test_a_second_blip_gives_its_patches_as_a_map_and_is_not_the_first(checkpoints: dict[str, str]) -> None:
    objective = tiny_model(second_stream="blip", second_vision=checkpoints["itm"], vision=checkpoints["itm"]).objective
    first, stream = objective.tower("vision"), objective.tower("second_stream")
    assert stream.encoder is not first
    assert all(p is not q for p in first.parameters() for q in stream.encoder.parameters())
    batch = random_batch(ROWS)
    tokens = objective.image_tokens(batch.shown)[:, 1:]
    found = stream(batch.shown)
    assert found.shape == (len(ROWS), stream.width, 4, 4)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), tokens)
    objective(batch).loss.backward()
    assert all(p.grad is not None for n, p in stream.named_parameters() if "post_layernorm" not in n)


def test_two_untrained_encoders_are_not_alike() -> None:
    objective = tiny_model(second_stream="blip").objective
    first, second = objective.tower("vision"), objective.tower("second_stream").encoder
    assert not torch.equal(first.embeddings.patch_embedding.weight, second.embeddings.patch_embedding.weight)
