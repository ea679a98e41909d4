"""Operations of what is computed once per image: the vision towers of both streams."""

from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.cost.tally import Rows, Tally, is_trained
from model.towers.lxmert import RegionTower
from model.towers.timm_backbone import TimmVisionTower
from model.towers.vision import BlipVisionTower, EfficientSamTower, VisionTower


def sight_flops(tally: Tally, tower: VisionTower, tokens: int) -> bool:
    """A vision tower's, per image; whether its tokens carry a gradient."""
    if isinstance(tower, BlipVisionTower):
        return _blip(tally, tower, tokens)
    if isinstance(tower, EfficientSamTower):
        return _efficient_sam(tally, tower)
    if isinstance(tower, RegionTower):
        return _regions(tally, tower, tokens)
    assert isinstance(tower, TimmVisionTower), type(tower)
    return _counted(tally, tower)


def stream_flops(tally: Tally, stream: nn.Module | None) -> bool:
    """The second stream's, per image; whether its map carries a gradient. One that was given beforehand costs none."""
    tower = getattr(stream, "tower", None)
    return False if tower is None else sight_flops(tally, tower, tower.prefix + tower.grid**2)


def _blip(tally: Tally, tower: BlipVisionTower, tokens: int) -> bool:
    model, rows, pairs = tower.module, Rows("images", tokens), Rows("images", tokens**2)
    tally.convolution(model.embeddings.patch_embedding, Rows("images", tower.grid**2), False)
    grad = is_trained(model.embeddings)
    for layer in model.encoder.layers:
        attention = layer.self_attn
        qkv = tally.linear(attention.qkv, rows, grad or is_trained(layer.layer_norm1))
        mixed = tally.attention(tower.width, pairs, query=qkv, key=qkv, value=qkv)
        grad = tally.linear(attention.projection, rows, mixed) or grad
        inner = tally.linear(layer.mlp.fc1, rows, grad or is_trained(layer.layer_norm2))
        grad = tally.linear(layer.mlp.fc2, rows, inner) or grad
    return grad or is_trained(model.post_layernorm)


def _efficient_sam(tally: Tally, tower: EfficientSamTower) -> bool:
    model, cells = tower.module, tower.grid**2
    rows, pairs = Rows("images", cells), Rows("images", cells**2)
    grad = tally.convolution(model.patch_embed.proj, rows, False) or model.pos_embed.requires_grad
    for block in model.blocks:
        qkv = tally.linear(block.attn.qkv, rows, grad)
        mixed = tally.attention(block.attn.proj.in_features, pairs, query=qkv, key=qkv, value=qkv)
        grad = tally.linear(block.attn.proj, rows, mixed) or grad
        grad = tally.linear(block.mlp.fc2, rows, tally.linear(block.mlp.fc1, rows, grad)) or grad
    for layer in model.neck:
        if isinstance(layer, nn.Conv2d):
            grad = tally.convolution(layer, rows, grad)
    return grad or is_trained(model)


def _regions(tally: Tally, tower: RegionTower, tokens: int) -> bool:
    encoder, rows, pairs = tower.module.encoder, Rows("images", tokens), Rows("images", tokens**2)
    features = tally.linear(encoder.visn_fc.visn_fc, rows, False)
    boxes = tally.linear(encoder.visn_fc.box_fc, rows, False)
    grad = features or boxes
    for layer in encoder.r_layers:
        grad = bert_layer(tally, layer, rows, pairs, grad)
    return grad


def bert_layer(tally: Tally, layer: Any, rows: Rows, pairs: Rows, grad: bool) -> bool:
    """A layer that attends to its own rows, as `LxmertLayer` names its parts."""
    own = layer.attention.self
    query, key, value = (tally.linear(linear, rows, grad) for linear in (own.query, own.key, own.value))
    mixed = tally.attention(own.head_size, pairs, query=query, key=key, value=value)
    grad = tally.linear(layer.attention.output.dense, rows, mixed) or grad
    return tally.linear(layer.output.dense, rows, tally.linear(layer.intermediate.dense, rows, grad)) or grad


def _counted(tally: Tally, tower: TimmVisionTower) -> bool:
    """A backbone of timm has no form of its own: one image is counted on the meta device, where nothing is computed."""
    trained = is_trained(tower.module)
    forward, backward = tower.skeleton_flops(_count, trained=trained)
    tally.forward["images"] += forward
    tally.backward["images"] += backward
    return trained


def _count(model: nn.Module, pixels: torch.Tensor, *, trained: bool) -> tuple[float, float]:
    def counted(run: Any) -> tuple[float, Any]:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            made = run()
        return float(counter.get_total_flops()), made

    with torch.set_grad_enabled(trained):
        forward, features = counted(lambda: model.forward_features(pixels))
        return forward, counted(lambda: features.sum().backward())[0] if trained else 0.0
