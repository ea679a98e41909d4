"""EfficientSAM as a whole: an image is encoded once, then each prompt of points costs one pass of a small decoder.

Shapes: B images, Q prompts of each, R rows (prompts with the index of their image), P points, M masks, K neck channels,
(h, w) the grid of the image encoder, (h', w') the masks before they are resized, 4 times the grid at official sizes.
Source: EfficientSAM (Xiong et al., CVPR 2024), `yformer/EfficientSAM`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.efficient_sam.decoder import CROSS_DOWNSAMPLE, MaskDecoder, MaskDecoderConfig, MaskPrediction
from model.efficient_sam.encoder import EFFICIENT_SAM_CONFIGS, EfficientSamEncoder, EfficientSamEncoderConfig
from model.efficient_sam.prompts import PADDING, PromptEncoder
from shards.errors import ConfigError

CELLS_AT_ONCE = 65_536
"""Image cells that are decoded together: 16 rows of 64 × 64, 0.5 GB of activations in fp32 without gradients."""


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """The sizes of a whole segmenter; prompts and decoder have the width of the image encoder's neck."""

    encoder: EfficientSamEncoderConfig = field(default_factory=EfficientSamEncoderConfig)
    decoder: MaskDecoderConfig = field(default_factory=MaskDecoderConfig)
    max_points: int = 6
    """Points that the decoder reads of a prompt."""

    def __post_init__(self) -> None:
        if self.max_points < 1:
            raise ConfigError(f"EfficientSAM: max_points is {self.max_points}, expected at least 1")
        if self.encoder.neck_width % (CROSS_DOWNSAMPLE * self.decoder.heads):
            raise ConfigError(
                f"EfficientSAM: neck_width {self.encoder.neck_width} is not a multiple of {CROSS_DOWNSAMPLE} x "
                f"{self.decoder.heads} heads of the mask decoder"
            )


SEGMENTER_CONFIGS = {name: SegmenterConfig(encoder=encoder) for name, encoder in EFFICIENT_SAM_CONFIGS.items()}


class Segmenter(nn.Module):
    """Image encoder, prompt encoder and mask decoder. Any precision: `.half()` and `.bfloat16()` work.

    Args:
        config: the sizes.
        image_encoder: one that exists already and is shared, in any precision; its sizes stand for `config.encoder`.

    Raises:
        ConfigError: the image encoder's neck does not fit the mask decoder.
    """

    def __init__(self, config: SegmenterConfig, image_encoder: EfficientSamEncoder | None = None) -> None:
        super().__init__()
        if image_encoder is not None:
            config = replace(config, encoder=image_encoder.config)
        width = config.encoder.neck_width
        self.config = config
        self.image_encoder = EfficientSamEncoder(config.encoder) if image_encoder is None else image_encoder
        self.prompt_encoder = PromptEncoder(width, config.encoder.image_size, config.max_points)
        self.mask_decoder = MaskDecoder(config.decoder, width)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) of any size, floats in [0, 1], to embeddings (B, K, h, w)."""
        return self.image_encoder(images)

    def predict(
        self, embeddings: Tensor, points: Tensor, labels: Tensor, input_size: tuple[float, float]
    ) -> MaskPrediction:
        """M masks for each of Q prompts of each image.

        Args:
            embeddings: (B, K, h, w), as `encode` gives them.
            points: (B, Q, P, 2), (x, y) in pixels of an image of `input_size`; of more than `max_points` the first
                count, missing ones are padded.
            labels: (B, Q, P), 1 = a point, -1 = padding; 2 and 3 = a box's top left and bottom right corner.
            input_size: (H, W) of the images before they were resized.

        Returns:
            logits (B, Q, M, h', w') and predicted IoU (B, Q, M).
        """
        images, prompts = points.shape[:2]
        assert labels.shape == points.shape[:-1], f"labels {tuple(labels.shape)} for points {tuple(points.shape)}"
        assert len(embeddings) == images, f"{len(embeddings)} embeddings for points of {images} images"
        image_of_row = torch.arange(images, device=embeddings.device).repeat_interleave(prompts)
        tokens = self.prompt_encoder(points.flatten(0, 1), labels.flatten(0, 1), input_size)
        parts = zip(*self._decode_in_parts(embeddings, image_of_row, tokens), strict=True)
        return MaskPrediction(*(torch.cat(part).unflatten(0, (images, prompts)) for part in parts))

    def masks_for(
        self, embeddings: Tensor, image_of_row: Tensor, points: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The mask with the best predicted IoU for each row; rows share the embeddings of their images.

        Rows are decoded in parts of bounded memory (CELLS_AT_ONCE). A row's result depends on that row alone.

        Args:
            embeddings: (B, K, h, w), as `encode` gives them.
            image_of_row: (R,) int64, the image of each row, in any order.
            points: (R, P, 2), (x, y) with the image as [0, 1]; what stands in padding does not matter.
            labels: (R, P), 1 = a point, -1 = padding.

        Returns:
            logits (R, h', w') and their predicted IoU (R,), both fp32.
        """
        assert labels.shape == points.shape[:-1], f"labels {tuple(labels.shape)} for points {tuple(points.shape)}"
        points = torch.where((labels == PADDING).unsqueeze(-1), -1.0, points.float())
        tokens = self.prompt_encoder(points, labels, input_size=(1.0, 1.0))
        logits, iou = zip(*map(_best_mask, self._decode_in_parts(embeddings, image_of_row, tokens)), strict=True)
        return torch.cat(logits), torch.cat(iou)

    @staticmethod
    def resize_masks(logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (..., h', w') to (..., H, W) in fp32, bicubic as in the original; at least 0 is inside."""
        maps = logits.float().reshape(-1, 1, *logits.shape[-2:])
        return F.interpolate(maps, size, mode="bicubic", align_corners=False).reshape(*logits.shape[:-2], *size)

    def _decode_in_parts(self, embeddings: Tensor, image_of_row: Tensor, tokens: Tensor) -> Iterator[MaskPrediction]:
        """Rows in order, at least one part; an image's embedding is repeated only inside a part."""
        height, width = embeddings.shape[-2:]
        embeddings = embeddings.to(tokens.dtype)  # a shared encoder may run in another precision
        positions = self.prompt_encoder.pe_layer.grid(height, width)
        rows_at_once = max(1, CELLS_AT_ONCE // (height * width))
        for images, prompts in zip(image_of_row.split(rows_at_once), tokens.split(rows_at_once), strict=True):
            yield self.mask_decoder(embeddings.index_select(0, images), positions, prompts)


def _best_mask(prediction: MaskPrediction) -> MaskPrediction:
    """(R, M, h', w') and (R, M) to (R, h', w') and (R,); of equals the first."""
    rows = torch.arange(len(prediction.iou), device=prediction.iou.device)
    best = prediction.iou.argmax(dim=1)
    return MaskPrediction(prediction.logits[rows, best], prediction.iou[rows, best])
