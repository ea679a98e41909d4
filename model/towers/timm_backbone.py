"""Any backbone of timm as a vision tower: what its `forward_features` gives, found out without its weights.

An architecture is built once on torch's meta device, where it takes neither memory nor time. One forward and backward
there say how its tokens lie and which parameters they depend on: heads and poolings, which would never see a gradient,
are left out by that alone and by no list of names.

Shapes: B images, S side of the input, P tokens in front of the grid, g cells on a side of it, D width.
"""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from model.pixels import Reads
from model.references import Reference
from model.towers.checkpoint_files import short_reason
from model.towers.timm_files import DIRECTORY, fetch, library
from model.towers.vision import VisionTower
from shards.errors import ConfigError, DataError

Axes = Literal["tokens", "NCHW", "NHWC"]
"""How `forward_features` lays out what it gives: (B, N, D), (B, D, h, w) or (B, h, w, D)."""


class Layout(NamedTuple):
    """What a backbone reads and gives."""

    reads: Reads
    axes: Axes
    width: int
    """D."""
    grid: int
    """g."""
    prefix: int
    """P."""


class Backbone(NamedTuple):
    """An architecture without its weights."""

    reference: Reference
    said: str
    """`key=reference`, for errors."""
    skeleton: nn.Module
    """Whole, on the meta device."""
    layout: Layout
    unused: frozenset[str]
    """Parameters that no feature depends on: heads, poolings."""


class TimmVisionTower(VisionTower):
    """A backbone of timm around its `forward_features`, with the weights as its authors saved them.

    Args:
        whole: the rest of its state, by timm's names: what features do not depend on, and what is no parameter.
    """

    def __init__(self, backbone: Backbone, module: nn.Module, whole: Mapping[str, Tensor]) -> None:
        self.module, self._backbone, self._whole = module, backbone, whole
        self.reads, self._axes, self.width, self.grid, self.prefix = backbone.layout
        self.image_size = self.reads.size
        self.starts_gated = backbone.reference.is_untrained  # Swin V2's norms, NFNet's gains

    @property
    def preprocessing(self) -> str:
        return f"{super().preprocessing}, {self.reads}"

    def encode(self, shown: Tensor) -> Tensor:
        features = self.module(self.reads.pixels(shown, next(self.module.parameters()).dtype))
        if self._axes == "tokens":
            return features
        cells = features.flatten(2).transpose(1, 2) if self._axes == "NCHW" else features.flatten(1, 2)
        return cells.contiguous()

    def skeleton_flops(self, count: Callable[..., tuple[float, float]], *, trained: bool) -> tuple[float, float]:
        """What `count(model, pixels (1, 3, S, S), trained=trained)` says of the architecture on the meta device."""
        model = deepcopy(self._backbone.skeleton).requires_grad_(trained)
        for name in self._backbone.unused:
            model.get_parameter(name).requires_grad_(False)
        return count(model, torch.empty(1, 3, self.image_size, self.image_size, device="meta"), trained=trained)

    def save(self, weights: Mapping[str, Tensor], directory: Path) -> None:
        """Write a directory that a reference reads again, and timm itself (`local-dir:`), its head included.

        Args:
            weights: the trained parameters by their names in the module.
        """
        model = deepcopy(self._backbone.skeleton)
        state = {name: value.contiguous() for name, value in {**self._whole, **weights}.items()}
        model.load_state_dict(state, strict=True, assign=True)
        library().models.save_for_hf(model, str(directory), safe_serialization=True)


@torch.enable_grad()
def examine(said: str, reference: Reference) -> Backbone:
    """Build the architecture of a reference without its weights, and see what its features are.

    Args:
        said: `key=reference`, for errors.

    Raises:
        ConfigError: timm does not know it, or it gives no tokens that lie on a square grid.
        DataError: its files are missing or damaged.
    """
    fetch(said, reference._replace(is_untrained=True))  # of a repository, what says the architecture
    skeleton = _build(said, reference, pretrained=False, device="meta").eval()
    reads = _reads(said, skeleton)
    features = _features(said, skeleton, reads)
    layout = _layout(said, skeleton, reads, features)
    gradients = torch.autograd.grad(features.sum(), list(skeleton.parameters()), allow_unused=True)
    names = (name for name, _ in skeleton.named_parameters())
    unused = frozenset(name for name, found in zip(names, gradients, strict=True) if found is None)
    return Backbone(reference, said, skeleton, layout, unused)


def check_trainable(backbone: Backbone, *, freeze: str, checkpointing: bool) -> None:
    """Whether a backbone can be trained here.

    Args:
        freeze: its name in model.freeze.

    Raises:
        ConfigError: it has batch statistics, which would differ between ranks and micro-batches; or no checkpointing.
    """
    skeleton, said = backbone.skeleton, backbone.said
    norms = [
        name
        for name, module in skeleton.named_modules()
        if isinstance(module, _NormBase) and module.track_running_stats and _is_used(name, module, backbone)
    ]
    if norms:
        raise ConfigError(
            f"{said}: has batch statistics ({len(norms)} layers, such as {norms[0]}), which depend on the micro-batch "
            f"and would differ between ranks; put {freeze} into model.freeze, or name a backbone without"
        )
    if checkpointing:
        try:
            deepcopy(skeleton).set_grad_checkpointing(True)
        except (AssertionError, AttributeError, NotImplementedError):
            raise ConfigError(
                f"model.gradient_checkpointing: {said} has none; set it to false, or put {freeze} into model.freeze"
            ) from None


def load_backbone(
    backbone: Backbone, *, trained: bool, checkpointing: bool, cells_alone: bool = False
) -> TimmVisionTower:
    """The tower of an examined backbone: its weights, or those that timm draws; in fp32.

    Args:
        trained: keeps what an export needs beside the parameters.
        cells_alone: the tokens in front of the grid are not read, so what they alone depend on is not trained.
        checkpointing: recompute blocks in the backward pass.

    Raises:
        DataError: the weights are missing or damaged, or do not fit the architecture.
    """
    reference, unused = backbone.reference, backbone.unused
    fetch(backbone.said, reference)
    module = _build(backbone.said, reference, pretrained=not reference.is_untrained)
    fixed = _beside_cells(module, backbone) if trained and cells_alone and backbone.layout.prefix else frozenset()
    kept = {name for name, _ in module.named_parameters()} - unused - fixed
    whole = {name: value.clone() for name, value in module.state_dict().items() if name not in kept} if trained else {}
    for name in unused | fixed:
        owner, _, own_name = name.rpartition(".")
        holder = module.get_submodule(owner)
        value = getattr(holder, own_name).detach()
        holder.register_parameter(own_name, None)
        if name in fixed:  # still computed with
            delattr(holder, own_name)
            holder.register_buffer(own_name, value, persistent=False)
    if trained and checkpointing:
        module.set_grad_checkpointing(True)
    # Called as a module, or ZeRO-3 would not gather what lies on the backbone itself: class token, positions.
    module.forward = module.forward_features
    return TimmVisionTower(backbone, module, whole)


def _build(said: str, reference: Reference, *, pretrained: bool, device: str = "cpu") -> nn.Module:
    timm = library()
    try:
        with torch.device(device):
            return timm.create_model(reference.timm_source, pretrained=pretrained)
    except MemoryError:
        raise
    except Exception as error:  # timm, safetensors, pickle and each architecture fail in ways of their own
        what = "weights do not load" if pretrained else "cannot be built"
        remedy = f"; expected {DIRECTORY}" if reference.directory is not None else ""
        raise DataError(f"{said}: {what} ({short_reason(error)}){remedy}") from None


def _reads(said: str, model: nn.Module) -> Reads:
    config = library().data.resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise ConfigError(
            f"{said}: reads {channels} x {height} x {width}; expected 3 channels and a square, as images are loaded"
        )
    # The few others (nearest, random) are for augmentation, and torch resizes on the device in these two.
    interpolation = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    return Reads(height, tuple(config["mean"]), tuple(config["std"]), interpolation)


def _features(said: str, model: nn.Module, reads: Reads) -> Tensor:
    try:
        features = model.forward_features(torch.empty(1, 3, reads.size, reads.size, device="meta"))
    except Exception as error:  # whatever an architecture does that cannot be done without values
        raise ConfigError(f"{said}: its features cannot be examined ({short_reason(error)})") from None
    if not isinstance(features, Tensor):
        raise ConfigError(
            f"{said}: gives a {type(features).__name__} of features; expected one tensor of tokens or one map"
        )
    return features


@torch.enable_grad()
def _beside_cells(module: nn.Module, backbone: Backbone) -> frozenset[str]:
    """The parameters that only the tokens in front of the grid depend on, as CaiT's last layers do.

    Which they are shows in values alone: costs one image forward and backward.
    """
    layout, generator = backbone.layout, torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, layout.reads.size, layout.reads.size, generator=generator)
    was_training = module.training
    cells = module.eval().forward_features(image)[:, layout.prefix :]
    module.train(was_training)
    parameters = {name: value for name, value in module.named_parameters() if name not in backbone.unused}
    chosen = (cells * torch.randn(cells.shape, generator=generator)).sum()
    gradients = torch.autograd.grad(chosen, list(parameters.values()), allow_unused=True)
    silent = (found is None or not found.any() for found in gradients)
    return frozenset(name for name, is_silent in zip(parameters, silent, strict=True) if is_silent)


def _layout(said: str, model: nn.Module, reads: Reads, features: Tensor) -> Layout:
    shape = tuple(features.shape)
    if features.dim() == 3:
        return _layout_of_tokens(said, model, reads, shape)
    if features.dim() != 4:
        raise ConfigError(f"{said}: gives features of shape {shape}, pooled; expected tokens or a map")
    axes = _axes(said, model, shape)
    _, *sides = shape if axes == "NHWC" else (shape[0], *shape[2:], shape[1])
    height, width, channels = sides
    return Layout(reads, axes, channels, _square(said, height, width), 0)


def _layout_of_tokens(said: str, model: nn.Module, reads: Reads, shape: tuple[int, ...]) -> Layout:
    _, count, width = shape
    prefix = getattr(model, "num_prefix_tokens", None)
    if prefix is None:  # then the patches say it
        side = math.ceil(reads.size / _last_stage(model).get("reduction", reads.size))  # LeViT rounds every halving up
        prefix = count - side**2
    grid = math.isqrt(max(count - prefix, 0))
    if prefix < 0 or grid * grid != count - prefix:
        behind = f" behind {prefix} others" if prefix > 0 else ""
        raise ConfigError(f"{said}: gives {count} tokens that are no square grid of cells{behind}")
    return Layout(reads, "tokens", width, _square(said, grid, grid), prefix)


def _axes(said: str, model: nn.Module, shape: tuple[int, ...]) -> Axes:
    """As the model says itself, or else where its channels are."""
    said_axes = getattr(model, "output_fmt", None)
    if said_axes in ("NCHW", "NHWC"):
        return said_axes
    stage = _last_stage(model)
    channels = {model.num_features, stage.get("num_chs"), stage.get("num_chs_norm")}
    for axes, found in (("NCHW", shape[1]), ("NHWC", shape[3])):
        if found in channels:
            return axes
    raise ConfigError(f"{said}: gives a map of shape {shape} and does not say which axis are its channels")


def _last_stage(model: nn.Module) -> Mapping[str, Any]:
    stages = getattr(model, "feature_info", None)
    return stages[-1] if stages else {}


def _square(said: str, height: int, width: int) -> int:
    if height != width or height < 2:
        raise ConfigError(f"{said}: gives {height} x {width} cells; expected a square grid of at least 2 x 2")
    return height


def _is_used(name: str, module: nn.Module, backbone: Backbone) -> bool:
    own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
    return not own or not own <= backbone.unused
