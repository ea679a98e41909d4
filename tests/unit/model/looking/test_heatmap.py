"""Heatmaps of many questions at once against GradCAM over the plain transformers model, one question at a time."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import BlipConfig, BlipForImageTextRetrieval, BlipTextConfig, BlipVisionConfig

from model.looking.heatmap import default_block, text_heatmaps
from model.rows import Grouping
from model.towers.match_tower import MatchTower
from shards.errors import ConfigError

PATCH = 4
LONG = 60


def plain_model(*, grid: int = 3, heads: int = 3, layers: int = 4, dropout: float = 0.0) -> BlipForImageTextRetrieval:
    """A model whose weights are large enough for questions to differ."""
    torch.manual_seed(heads)
    text = BlipTextConfig(
        vocab_size=60,
        hidden_size=24,
        encoder_hidden_size=18,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=LONG + 4,
        bos_token_id=5,
        eos_token_id=3,
        sep_token_id=3,
        pad_token_id=0,
        initializer_range=0.3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    vision = BlipVisionConfig(
        hidden_size=18,
        intermediate_size=36,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=grid * PATCH,
        patch_size=PATCH,
        initializer_range=0.3,
    )
    return BlipForImageTextRetrieval(
        BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=24)
    ).eval()


def tower_of(model: BlipForImageTextRetrieval) -> MatchTower:
    return MatchTower(model.text_encoder, model.itm_head).requires_grad_(False).eval()


class Asked:
    """Questions of given lengths about images of random pixels."""

    def __init__(self, model: BlipForImageTextRetrieval, lengths: Sequence[Sequence[int]], *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        side = model.config.vision_config.image_size
        self.pixels = torch.randn(len(lengths), 3, side, side, generator=generator)
        self.image = torch.tensor([image for image, rows in enumerate(lengths) for _ in rows], dtype=torch.int64)
        flat = torch.tensor([length for rows in lengths for length in rows])
        self.mask = torch.arange(max(flat.tolist(), default=0)) < flat[:, None]
        self.ids = torch.randint(7, 60, self.mask.shape, generator=generator) * self.mask
        self.grouping = Grouping.of(self.image, num_images=len(lengths), rows_per_image=max(map(len, lengths)))
        self.tokens = model.vision_model(self.pixels).last_hidden_state.detach()

    def heatmaps(self, tower: MatchTower, **options: int) -> Tensor:
        return text_heatmaps(tower, self.ids, self.mask, self.tokens, self.grouping, **options)


def plain_heatmap(model: BlipForImageTextRetrieval, ids: Tensor, pixels: Tensor, block: int) -> Tensor:
    """GradCAM of one question without padding, through the model's own forward."""
    seen: list[Tensor] = []
    dropout = model.text_encoder.encoder.layer[block].crossattention.self.dropout
    hook = dropout.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    score = model(input_ids=ids[None], pixel_values=pixels[None], use_itm_head=True).itm_score[0, 1]
    hook.remove()
    (gradient,) = torch.autograd.grad(score, seen)
    cam = (seen[0] * gradient.clamp(min=0))[0].mean(dim=0)
    grid = round((cam.shape[-1] - 1) ** 0.5)
    return cam[1:-1, 1:].mean(dim=0).view(grid, grid).detach()


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("grid", "heads", "layers", "block"), [(2, 1, 2, 0), (3, 3, 4, 0), (3, 2, 4, 1), (5, 4, 4, 2), (4, 12, 3, 1)]
)
def test_heatmaps_equal_gradcam_of_the_plain_model_question_by_question(
    grid: int, heads: int, layers: int, block: int
) -> None:
    model = plain_model(grid=grid, heads=heads, layers=layers)
    asked = Asked(model, [[5, 3, 9], [7], [4, 11]])
    found = asked.heatmaps(tower_of(model), block=block)
    model.requires_grad_(True)
    assert found.shape == (6, grid, grid)
    assert found.dtype == torch.float32
    assert (found >= 0).all()
    for row, heat in enumerate(found):
        expected = plain_heatmap(model, asked.ids[row][asked.mask[row]], asked.pixels[asked.image[row]], block)
        assert expected.max() > 0, "a cold heatmap proves nothing"
        torch.testing.assert_close(heat, expected, atol=1e-5 * float(expected.max()), rtol=1e-5)


def test_a_question_may_be_as_long_as_the_encoder_has_positions() -> None:
    model = plain_model()
    asked = Asked(model, [[LONG, 4]])
    found = asked.heatmaps(tower_of(model), block=1)
    model.requires_grad_(True)
    expected = plain_heatmap(model, asked.ids[0], asked.pixels[0], 1)
    torch.testing.assert_close(found[0], expected, atol=1e-5 * float(expected.max()), rtol=1e-5)


def test_a_question_has_the_same_heatmap_whatever_else_is_asked() -> None:
    model = plain_model()
    tower, asked = tower_of(model), Asked(model, [[5, 20], [3], [8, 4, 13]])
    together = asked.heatmaps(tower, block=1)
    for row, image in enumerate(asked.image):
        ids, mask = (table[row : row + 1, asked.mask[row]] for table in (asked.ids, asked.mask))
        grouping = Grouping.of(torch.tensor([0]), num_images=1, rows_per_image=1)
        alone = text_heatmaps(tower, ids, mask, asked.tokens[image][None], grouping, block=1)
        assert relative_error(together[row], alone[0]) < 1e-5


@pytest.mark.parametrize("length", [0, 1, 2])
@pytest.mark.parametrize("more", [0, 1000])
def test_rows_without_a_question_are_cold_and_disturb_no_other(length: int, more: int) -> None:
    model = plain_model()
    tower, asked = tower_of(model), Asked(model, [[6, length], [length]])
    found = asked.heatmaps(tower, block=1, num_tokens=int(asked.mask.sum()) + more)
    assert not found[1:].any()
    asked.mask[1:] = torch.arange(asked.mask.shape[1]) < 5
    assert relative_error(found[0], asked.heatmaps(tower, block=1)[0]) < 1e-5


def test_images_without_questions_and_no_question_at_all_are_fine() -> None:
    model = plain_model()
    tower = tower_of(model)
    asked = Asked(model, [[], [6], []])
    assert asked.heatmaps(tower, block=1).shape == (1, 3, 3)
    nothing = torch.zeros(0, 5, dtype=torch.int64)
    grouping = Grouping.of(torch.zeros(0, dtype=torch.int64), num_images=3, rows_per_image=1)
    assert text_heatmaps(tower, nothing, nothing.bool(), asked.tokens, grouping, block=1).shape == (0, 3, 3)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_does_not_matter_whether_the_caller_switched_gradients_off(guard: type) -> None:
    model = plain_model()
    expected = Asked(model, [[5, 9], [4]]).heatmaps(tower_of(model), block=1)
    with guard():
        asked = Asked(model, [[5, 9], [4]])  # under inference mode its tensors are inference tensors
        found = asked.heatmaps(tower_of(model), block=1)
        assert torch.is_inference_mode_enabled() == (guard is torch.inference_mode)
        assert torch.is_grad_enabled() == (guard is torch.enable_grad)
    assert torch.equal(found, expected)
    assert not found.requires_grad


def test_a_model_that_was_made_in_inference_mode_has_heatmaps_too() -> None:
    with torch.inference_mode():
        model = plain_model()
    with torch.inference_mode():
        found = Asked(model, [[5, 9], [4]]).heatmaps(tower_of(model), block=1)
    ordinary = plain_model()
    assert torch.equal(found, Asked(ordinary, [[5, 9], [4]]).heatmaps(tower_of(ordinary), block=1))


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_its_image_tokens_are_left_as_they_were(trained: bool, training: bool) -> None:
    model = plain_model()
    tower, asked = tower_of(model).requires_grad_(trained).train(training), Asked(model, [[5, 9], [4]])
    asked.tokens.requires_grad_(trained)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    asked.heatmaps(tower, block=1)
    assert asked.tokens.grad is None
    for parameter in tower.parameters():
        assert parameter.grad is None
        assert parameter.requires_grad == trained
    for module in tower.modules():
        assert module.training == training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    after = tower.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_only_the_layers_from_the_block_on_have_a_graph() -> None:
    model = plain_model()
    graphs: list[bool] = []
    for layer in model.text_encoder.encoder.layer:
        layer.output.register_forward_hook(lambda _, __, output: graphs.append(output.requires_grad))
    asked, tower = Asked(model, [[5, 9], [4]]), tower_of(model)
    asked.heatmaps(tower, block=2)
    assert graphs == [False, False, True, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_towers_give_nearly_the_same_heat(dtype: torch.dtype) -> None:
    model = plain_model()
    asked = Asked(model, [[5, 9, 12], [4]])
    expected = asked.heatmaps(tower_of(model), block=1)
    asked.tokens = asked.tokens.to(dtype)
    found = asked.heatmaps(tower_of(model.to(dtype)), block=1)
    assert found.dtype == torch.float32
    assert relative_error(found, expected) < (0.01 if dtype == torch.float16 else 0.1)
    assert all(parameter.dtype == dtype for parameter in model.parameters())


def test_gradients_that_float16_cannot_hold_are_not_lost() -> None:
    model = plain_model()
    with torch.no_grad():
        model.itm_head.weight.mul_(2.0**-14)
    asked = Asked(model, [[9]])
    expected = asked.heatmaps(tower_of(model), block=1)[0]
    tower = tower_of(model.half().requires_grad_(True))
    asked.tokens = asked.tokens.half()
    plain = plain_heatmap(model.requires_grad_(True), asked.ids[0], asked.pixels[0].half(), 1).float()
    assert relative_error(plain, expected) > 0.2, "float16 holds these gradients: nothing is proven"
    assert (
        relative_error(asked.heatmaps(tower, block=1)[0], expected) < 0.05
    )  # the weights themselves lose digits so far down


@pytest.mark.parametrize("block", [-1, 3, 7])
def test_a_block_that_tells_nothing_is_refused(block: int) -> None:
    model = plain_model()
    with pytest.raises(ConfigError, match=rf"block: {block}: the text encoder has 4 layers, of which 0 to 2 can be"):
        Asked(model, [[5]]).heatmaps(tower_of(model), block=block)


@pytest.mark.parametrize(("num_layers", "block"), [(12, 7), (24, 7), (9, 7), (8, 6), (2, 0)])
def test_the_block_is_that_of_pnp_vqa_or_the_last_that_can_be_used(num_layers: int, block: int) -> None:
    assert default_block(num_layers) == block


def test_what_stands_in_front_of_the_cells_is_left_out_however_many_tokens_it_is() -> None:
    model = plain_model(grid=3, heads=2, layers=3)
    asked, tower = Asked(model, [[5, 3], [7]]), tower_of(model)
    cells = asked.heatmaps(tower, block=1).flatten(1)
    assert cells.shape == (3, 9)
    assert torch.equal(asked.heatmaps(tower, block=1, prefix=6).flatten(1), cells[:, -4:])
