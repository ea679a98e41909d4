"""EfficientSAM's prompt encoder: points and their labels become tokens, key for key the official one.

Shapes: R prompts, P points of each, K neck channels, (h, w) the grid of the image encoder.
Source: EfficientSAM (Xiong et al., CVPR 2024), `yformer/EfficientSAM`; random Fourier features: Tancik et al. (2020).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PADDING, POINT, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = -1, 1, 2, 3
"""Labels of points. Any other label, such as 0, has no learnt embedding: only its position is encoded."""


class PromptEncoder(nn.Module):
    """Points to tokens: where a point is, plus what it is.

    Unlike in SAM, padding keeps the code of its position, (-1, -1) in the original, and nothing masks it out.

    Args:
        width: K, even.
        image_size: side in pixels of the square that the image encoder resizes to.
        max_points: tokens of each prompt.
    """

    def __init__(self, width: int, image_size: int, max_points: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.max_points = max_points
        self.pe_layer = FourierPositions(width)
        self.invalid_points = nn.Embedding(1, width)
        self.point_embeddings = nn.Embedding(1, width)
        self.bbox_top_left_embeddings = nn.Embedding(1, width)
        self.bbox_bottom_right_embeddings = nn.Embedding(1, width)

    def forward(self, points: Tensor, labels: Tensor, input_size: tuple[float, float]) -> Tensor:
        """Points (R, P, 2), (x, y) in pixels of an input of (H, W), and labels (R, P) to tokens (R, max_points, K).

        Points beyond `max_points` are dropped, missing ones become padding. Computed in fp32, returned in the
        precision of the weights.
        """
        points, labels = self._exactly_max_points(points.float(), labels)
        height, width = input_size
        scale = points.new_tensor([self.image_size / width, self.image_size / height])
        pixels = torch.where(points >= 0, points * scale, -1.0)
        tokens = self.pe_layer((pixels + 0.5) / self.image_size)
        for label, embedding in (
            (PADDING, self.invalid_points),
            (POINT, self.point_embeddings),
            (BOX_TOP_LEFT, self.bbox_top_left_embeddings),
            (BOX_BOTTOM_RIGHT, self.bbox_bottom_right_embeddings),
        ):
            tokens = tokens + (labels == label).unsqueeze(-1) * embedding.weight
        return tokens.to(self.point_embeddings.weight.dtype)

    def _exactly_max_points(self, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        points, labels = points[:, : self.max_points], labels[:, : self.max_points]
        missing = self.max_points - points.shape[1]
        return F.pad(points, (0, 0, 0, missing), value=-1.0), F.pad(labels, (0, missing), value=PADDING)


class FourierPositions(nn.Module):
    """Random Fourier features of places in the image, always in fp32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, width // 2))

    def forward(self, places: Tensor) -> Tensor:
        """Places (..., 2), (x, y) with the image as [0, 1], to codes (..., K)."""
        horizontal, vertical = self.positional_encoding_gaussian_matrix
        x, y = (2 * places.float() - 1).unsqueeze(-2).unbind(-1)
        # no matmul: autocast would round it to half precision, and the hardware to TF32
        phases = 2 * math.pi * (x * horizontal + y * vertical)
        return torch.cat([phases.sin(), phases.cos()], dim=-1)

    def grid(self, height: int, width: int) -> Tensor:
        """Codes of the centres of (h, w) cells, (1, K, h, w)."""
        device = self.positional_encoding_gaussian_matrix.device
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (h, w, 2)
        return self(centres).permute(2, 0, 1).unsqueeze(0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FourierPositions":
        """Follow the parent to its device, not to its precision: rounded frequencies move the codes by up to 0.05."""
        frequencies = self.positional_encoding_gaussian_matrix
        super()._apply(fn, recurse)
        applied = self.positional_encoding_gaussian_matrix
        if applied.dtype != frequencies.dtype:
            self.positional_encoding_gaussian_matrix = frequencies.to(applied.device)
        return self
