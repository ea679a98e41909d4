"""Where the match between a question and an image comes from: text-conditioned GradCAM, for many questions at once.

Cross-attention probabilities times what they add to the match logit, over the cells of the image: the first step of
PNP-VQA (Tiong et al. 2022, arXiv 2210.08773, section 3.1), as LAVIS computes it (`compute_gradcam`), for any number of
heads, any grid and any length of question.

Shapes: B images, R rows (questions), L tokens of a row, N image tokens (a prefix such as a class token, then g * g
cells row by row), D width, H heads.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from model.rows import Grouping, Words
from model.towers.blip import encode_text_layer
from model.towers.match_tower import MatchTower
from shards.errors import ConfigError

USUAL_BLOCK = 7
"""PNP-VQA's choice among the 12 layers of BLIP's text encoder."""


def default_block(num_layers: int) -> int:
    """The layer whose cross-attention to look at: PNP-VQA's, or in a shallower encoder the last but one."""
    return max(0, min(USUAL_BLOCK, num_layers - 2))


def text_heatmaps(
    tower: MatchTower,
    ids: Tensor,
    mask: Tensor,
    image_tokens: Tensor,
    grouping: Grouping,
    *,
    block: int = USUAL_BLOCK,
    num_tokens: int | None = None,
    prefix: int = 1,
) -> Tensor:
    """How much each cell of an image speaks for its match with each question.

    With A the cross-attention probabilities of a layer, (H, L, N), and dA the gradient of the row's match logit with
    respect to them, a cell's heat is the sum over the question's tokens of mean_h(A * max(dA, 0)), divided by their
    number. The first token and the last [SEP] are no tokens of the question, and what stands in front of the image's
    cells, such as a class token, is no cell.

    Layers below `block` run without a graph, and no parameter gets a gradient. It makes no difference whether the
    caller has switched gradients off, or is in inference mode. The layers that have a graph run in float32 also if the
    tower is in half precision, in which gradients as small as these underflow; that takes a copy of their weights
    while it lasts. Autocast is off inside, for the same reason: the heat is that of the tower's own precision.

    Args:
        tower: frozen or trained, in evaluation mode if the heat is to be without dropout; it is left as it was.
        ids: (R, L) token ids, [ENC] or [CLS] first and [SEP] last, as `BlipCodec.questions` gives them.
        mask: (R, L) bool, True at tokens; the heatmap of a row with no more than the two special tokens is 0.
        image_tokens: (B, N, D), fused.
        grouping: which rows read which image.
        block: a layer of the text encoder, but for the last: its question tokens do not reach the match logit.
        num_tokens: of the mask; None asks the mask, and waits for a GPU.
        prefix: image tokens in front of the cells: BLIP's one class token.

    Returns:
        (R, g, g) float32, not negative; not normalised.

    Raises:
        ConfigError: the text encoder has no such block.
    """
    layers = tower.text_encoder.encoder.layer
    grid = _grid(image_tokens.shape[1], prefix)
    check_block(block, len(layers))
    if not len(ids):
        return image_tokens.new_zeros(0, grid, grid, dtype=torch.float32)
    with _outside_inference_mode(), torch.no_grad(), torch.autocast(image_tokens.device.type, enabled=False):
        ids, mask, image_tokens, slots = (_ordinary(part) for part in (ids, mask, image_tokens, grouping.slots))
        grouping = grouping._replace(slots=slots)
        words = Words.of(mask, int(mask.sum()) if num_tokens is None else num_tokens)
        seen = mask | ~mask.any(dim=1, keepdim=True)  # attention over nothing is NaN
        hidden = words.pack(tower.text_encoder.embeddings(ids))
        reads = (words, seen[:, None, None, :], image_tokens.to(hidden.dtype), grouping)  # autocast's may be narrower
        for layer in layers[:block]:
            hidden = encode_text_layer(layer, hidden, *reads)
        attention, gradient = _attention_and_gradient(layers[block:], tower.itm_head, hidden, *reads)
        cam = (attention * gradient.clamp(min=0)).mean(dim=1)
        heat = torch.einsum("rl,rln->rn", _token_weights(mask), grouping.unpack(cam, words.length))
        return heat[:, prefix:].unflatten(1, (grid, grid))


def _attention_and_gradient(
    layers: nn.ModuleList, head: nn.Module, hidden: Tensor, words: Words, visible: Tensor, image: Tensor, to: Grouping
) -> tuple[Tensor, Tensor]:
    """(B, H, rows_per_image * L, N) probabilities of the first of these layers, and the gradient of the match logit."""
    layers, head, hidden, image = _in_float32(layers), _in_float32(head), hidden.float(), image.float()
    leaves: list[Tensor] = []

    def begin_graph(probabilities: Tensor) -> Tensor:
        leaves.append(probabilities.detach().requires_grad_())
        return leaves[0]

    with torch.enable_grad():
        hidden = encode_text_layer(layers[0], hidden, words, visible, image, to, observe=begin_graph)
        for layer in layers[1:]:
            hidden = encode_text_layer(layer, hidden, words, visible, image, to)
        logits = head(words.unpack(hidden)[:, 0])
        # Rows do not read each other: the gradient of the sum holds that of every row's own logit.
        (gradient,) = torch.autograd.grad(logits[:, 1].sum(), leaves)
    return leaves[0].detach(), gradient


def _in_float32(module: nn.Module) -> nn.Module:
    if all(parameter.dtype == torch.float32 and not parameter.is_inference() for parameter in module.parameters()):
        return module
    return deepcopy(module).float().requires_grad_(False)


def _token_weights(mask: Tensor) -> Tensor:
    """(R, L) float32: 1 / len at the tokens between the first and the last, len of them; 0 elsewhere."""
    length = mask.sum(dim=1, keepdim=True) - 2
    place = torch.arange(mask.shape[1], device=mask.device)
    return ((place >= 1) & (place <= length)) / length.clamp(min=1)


@contextmanager
def _outside_inference_mode() -> Iterator[None]:
    """What is computed inside may get a gradient; nothing changes where inference mode is off."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False):
        yield


def _ordinary(tensor: Tensor) -> Tensor:
    """A tensor made in inference mode cannot be kept for a backward pass; its copy can."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def _grid(num_image_tokens: int, prefix: int) -> int:
    grid = math.isqrt(num_image_tokens - prefix)
    assert grid * grid == num_image_tokens - prefix, f"{num_image_tokens} image tokens are no {prefix} and a square"
    return grid


def check_block(block: int, num_layers: int) -> None:
    """Whether a heatmap can be read from a layer of a text encoder.

    Raises:
        ConfigError: there is no such layer, or nothing behind it.
    """
    if 0 <= block < num_layers - 1:
        return
    usable = f"0 to {num_layers - 2}" if num_layers > 1 else "none"
    raise ConfigError(
        f"model.guidance.block: {block}: the text encoder has {num_layers} layers, of which {usable} can be used "
        "(behind the cross-attention of the last one, nothing reads the question's tokens)"
    )
