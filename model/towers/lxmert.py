"""LXMERT (Tan & Bansal 2019) over `transformers` modules: a region encoder, and a text tower that reads its tokens.

The modules keep the names that `LxmertModel` has for them, so that a state dict of either tower is a part of the whole
one's. The regions of an image are encoded once; from the first cross layer on they follow the text that reads them.

Shapes: B images, N regions, F numbers of a region, R rows of text, L tokens of a row, D width.
"""

import torch
from torch import Tensor, nn
from transformers import LxmertConfig, LxmertModel

from model.checkpointing import run_layer, which_again
from model.towers.reading import Reading
from model.towers.vision import VisionTower
from shards.read.collate import Block, SeenRegions

DEAD = {
    "embeddings.token_type_embeddings": "a single text has type 0 throughout, which is its padding row",
    "encoder.x_layers.{last}.visn_self_att": "nobody reads the regions behind the last cross layer",
    "encoder.x_layers.{last}.visn_inter": "nobody reads the regions behind the last cross layer",
    "encoder.x_layers.{last}.visn_output": "nobody reads the regions behind the last cross layer",
}
"""What never gets a gradient from a text's states, and why: 17 tensors that neither tower registers. The watch over
gradients would take them for a fault, ZeRO would wait for them, and an optimizer's decay would wear them away."""


def dead_modules(config: LxmertConfig) -> tuple[str, ...]:
    """The names in LxmertModel of what is never trained: see DEAD."""
    return tuple(name.format(last=config.x_layers - 1) for name in DEAD)


class _Named(nn.Module):
    """Modules under their names, run by whoever holds them."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class RegionEncoder(nn.Module):
    """What LXMERT makes of regions alone: features and boxes embedded, then the relational layers."""

    def __init__(self, model: LxmertModel) -> None:
        super().__init__()
        self.encoder = _Named({"visn_fc": model.encoder.visn_fc, "r_layers": model.encoder.r_layers})

    def forward(self, seen: SeenRegions, *, checkpointing: float = 0.0) -> Tensor:
        """B images to (B, N, D)."""
        dtype = self.encoder.visn_fc.visn_fc.weight.dtype
        tokens = self.encoder.visn_fc(seen.features.to(dtype), seen.boxes.to(dtype))
        for layer, again in which_again(self.encoder.r_layers, checkpointing):
            tokens = run_layer(_self_layer, again, layer, tokens, None)
        return tokens


class RegionTower(VisionTower):
    """LXMERT's side of regions: a first stream of as many tokens as there are regions, on no grid.

    Args:
        checkpointing: part of the layers to compute again in the backward pass.
    """

    medium = "regions"
    image_size = grid = None
    prefix = 0

    def __init__(self, model: LxmertModel, *, checkpointing: float = 0.0) -> None:
        self.module, self._checkpointing = RegionEncoder(model), checkpointing
        self.width, self.region_width = model.config.hidden_size, model.config.visual_feat_dim

    def encode(self, shown: SeenRegions) -> Tensor:
        return self.module(shown, checkpointing=self._checkpointing)


class LxmertTower(nn.Module):
    """LXMERT's side of text: language layers, then cross layers in which text and regions read each other.

    Args:
        checkpointing: part of the layers to compute again in the backward pass.
    """

    def __init__(self, model: LxmertModel, *, checkpointing: float = 0.0) -> None:
        super().__init__()
        dead, parts = dead_modules(model.config), model.embeddings.named_children()
        self.config, self._checkpointing = model.config, checkpointing
        self.embeddings = _Named({name: part for name, part in parts if f"embeddings.{name}" not in dead})
        cross = [
            _Named({n: part for n, part in layer.named_children() if f"encoder.x_layers.{number}.{n}" not in dead})
            for number, layer in enumerate(model.encoder.x_layers)
        ]
        self.encoder = _Named({"layer": model.encoder.layer, "x_layers": nn.ModuleList(cross)})
        self.pooler = model.pooler
        token_type = model.embeddings.token_type_embeddings.weight.detach()[0].clone()
        self.register_buffer("token_type", token_type, persistent=False)

    @property
    def read_width(self) -> int:
        """Width of the image tokens that it reads."""
        return self.config.hidden_size

    @property
    def state_width(self) -> int:
        """Width of what stands for a whole row."""
        return self.config.hidden_size

    def read(self, fused: Tensor, block: Block) -> Reading:
        """(B, N, D) tokens of regions and a block of texts to their states."""
        text = self._embedded(block.ids)
        readable = torch.zeros_like(block.mask, dtype=text.dtype).masked_fill(~block.mask, torch.finfo(text.dtype).min)
        readable = readable[:, None, None, :]
        for layer, again in which_again(self.encoder.layer, self._checkpointing):
            text = run_layer(_self_layer, again, layer, text, readable)
        seen = fused.to(text.dtype)[block.image]
        for layer, again in which_again(self.encoder.x_layers, self._checkpointing):
            text, seen = run_layer(_cross_layer, again, layer, text, readable, seen)
        return Reading(text, self.pooler(text))

    def _embedded(self, ids: Tensor) -> Tensor:
        parts = self.embeddings
        places = torch.arange(ids.shape[1], device=ids.device)
        added = parts.word_embeddings(ids) + parts.position_embeddings(places) + self.token_type
        return parts.dropout(parts.LayerNorm(added))


def _self_layer(layer: nn.Module, tokens: Tensor, readable: Tensor | None) -> Tensor:
    return layer(tokens, readable)[0]


def _cross_layer(layer: nn.Module, text: Tensor, readable: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """One weight reads in both directions. The last layer has nothing that goes on with the regions."""
    read = layer.visual_attention(text, seen)[0]
    if hasattr(layer, "visn_output"):
        looked = layer.visual_attention(seen, text, readable)[0]
        looked = layer.visn_self_att(looked, None)[0]
        seen = layer.visn_output(layer.visn_inter(looked), looked)
    read = layer.lang_self_att(read, readable)[0]
    return layer.lang_output(layer.lang_inter(read), read), seen
