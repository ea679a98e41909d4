"""An encoder that knows outlines and no colors: EfficientSAM's, small, trained to say which pixels belong to a thing.

Its patches are read through weights that are the same for the three channels, so that no color reaches it, whatever it
is trained on. What stays of the training is the encoder alone.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.efficient_sam.encoder import EfficientSamEncoder, EfficientSamEncoderConfig
from model.efficient_sam.weights import save_efficient_sam_encoder
from model.source import initialize_efficient_sam
from shards.annotations import reader_of
from shards.format.index import read_index
from shards.format.tar_reader import ShardReader
from shards.read.eyes import square_pixels

SIZES = EfficientSamEncoderConfig(
    image_size=64, patch_size=8, width=96, depth=2, heads=4, neck_width=96, mlp_ratio=4, pos_grid=8
)
STEPS, BATCH, PEAK = 600, 32, 2e-3


def train_outlines(shards: Path, ground: tuple[int, int, int], seed: int, out: Path) -> float:
    """Train on the pictures of a split and write the encoder.

    Args:
        ground: the color of what is no thing.

    Returns:
        How many pixels of the last pictures are told right, as a part of 1.
    """
    torch.manual_seed(seed)
    encoder = EfficientSamEncoder(SIZES)
    initialize_efficient_sam(encoder)
    head = nn.Linear(SIZES.neck_width, SIZES.patch_size**2)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=PEAK, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=STEPS)
    right = 0.0
    for pixels in _batches(shards, seed):
        _forget_color(encoder)
        logits = head(encoder(pixels.float() / 255).flatten(2).transpose(1, 2))
        things = (pixels != torch.tensor(ground, dtype=torch.uint8)[:, None, None]).any(dim=1, keepdim=True)
        cells = F.unfold(things.float(), SIZES.patch_size, stride=SIZES.patch_size).transpose(1, 2)
        loss = F.binary_cross_entropy_with_logits(logits, cells)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        right = float(((logits > 0) == (cells > 0)).float().mean())
    _forget_color(encoder)
    save_efficient_sam_encoder(encoder, out)
    return right


@torch.no_grad()
def _forget_color(encoder: EfficientSamEncoder) -> None:
    """Weights that see the sum of the three channels alone; they are read behind a division by each one's deviation."""
    weight = encoder.patch_embed.proj.weight
    weight.copy_((weight / encoder.std_milli).mean(dim=1, keepdim=True) * encoder.std_milli)


def _batches(shards: Path, seed: int) -> Iterator[Tensor]:
    index = read_index(shards)
    reader = ShardReader(shards, index, reader_of(index, shards).sample)
    samples = (data for sample in range(index.num_images) for data in reader.images(sample))
    pictures = torch.stack([square_pixels(data, SIZES.image_size, str(shards)) for data in samples])
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        yield pictures[torch.randint(len(pictures), (BATCH,), generator=generator)]
