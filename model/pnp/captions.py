"""Captions of the parts of an image that a question is about (PNP-VQA, Tiong et al. 2022, step 2).

For every caption a few image tokens are drawn by the question's heatmap, and BLIP's captioner writes what it sees of
them. There is no random state: each number drawn is a hash of the seed, the row's key, the round, the caption and the
token or cell, so a caption depends neither on the rows beside it nor on their order. What is left is the rounding of
the model itself, which may differ between batch sizes: a draw next to a bound of its interval can then fall to the
other side, rarely in fp32, now and then in half precision.

Shapes: B images, N = 1 + G * G image tokens (class token first), R rows (questions), C captions in the making,
P patches of a caption, D width.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import BlipForConditionalGeneration, PreTrainedTokenizerBase

from model.config import CaptionConfig
from model.towers.blip import KeysValues, decode_next, keys_values_read
from model.towers.hub import load_pretrained
from model.towers.spelling import clean_up
from model.towers.tokenizer import decode_plain
from model.towers.vision import BlipVisionTower
from shards.errors import ConfigError
from shards.plan import mix64

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_NUMBER_BITS, _PLACE_BITS = 20, 20
"""A caption's number and a place in it are packed with the round into the 64 bits that are hashed."""


class Captioner:
    """BLIP's captioner: image tokens once per image, then captions for any number of rows.

    Args:
        model: is frozen and set to evaluation.
        tokenizer: its own.

    Raises:
        ConfigError: the prompt leaves no room for a caption, or captions are longer than the model's positions.
    """

    def __init__(
        self,
        model: BlipForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        config: CaptionConfig | None = None,
    ) -> None:
        text = model.config.text_config
        self.config = config or CaptionConfig()
        if self.config.min_tokens > self.config.max_tokens:
            raise ConfigError(
                f"pnp.captions.min_tokens: {self.config.min_tokens}, more than max_tokens {self.config.max_tokens}"
            )
        self._model, self._tokenizer = model.eval().requires_grad_(False), tokenizer
        self._sight = BlipVisionTower(model.vision_model)
        self._end_id, self._pad_id = text.sep_token_id, text.pad_token_id
        prompt = tokenizer(self.config.prompt, add_special_tokens=False, verbose=False)["input_ids"]
        self._beginning = [text.bos_token_id, *prompt]
        longest, positions = self.config.max_tokens, text.max_position_embeddings
        if not len(self._beginning) < longest <= positions:
            raise ConfigError(
                f"pnp.captions.max_tokens: {longest}; expected more than the {len(self._beginning)} tokens of the "
                f"start and the prompt {self.config.prompt!r}, and at most the {positions} positions of the model"
            )

    @property
    def grid(self) -> int:
        """G: cells on a side of the image."""
        return self._sight.grid

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move and cast the model."""
        self._model.to(device=device, dtype=dtype)

    @torch.no_grad()
    def image_tokens(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 of any S to (B, N, D)."""
        return self._sight.encode(pixels)

    @torch.no_grad()
    def captions(
        self, image_tokens: Tensor, image_of_row: Tensor, heatmaps: Tensor, keys: Sequence[str], *, seed: int
    ) -> list[list[str]]:
        """Captions of each row without the prompt, in the order in which they were written.

        As in the original, a caption that is part of an earlier one of its row is dropped and another one is written.
        The keys and values of all B images are held at once (BLIP-large at 384 px: 42 MB each in fp32).

        Args:
            image_tokens: (B, N, D) of `image_tokens`.
            image_of_row: (R,) int64.
            heatmaps: (R, g, g), of any grid; negative heat counts as none.
            keys: R names that tell the rows apart, such as question ids.

        Returns:
            R lists of at most `num_captions`.
        """
        heat = self._heat(heatmaps)
        read = keys_values_read(self._model.text_decoder, image_tokens)
        image = image_of_row.cpu()
        cell_streams, token_streams = (_streams(seed, purpose, keys) for purpose in ("cell", "token"))
        kept: list[list[str]] = [[] for _ in keys]
        for round_number in range(self.config.max_rounds):
            missing = np.array([self.config.num_captions - len(captions) for captions in kept], np.int64)
            rows = np.repeat(np.arange(len(kept)), missing)
            numbers = np.arange(len(rows)) - np.repeat(np.cumsum(missing) - missing, missing)
            for first in range(0, len(rows), self.config.rows_per_batch):
                part = slice(first, first + self.config.rows_per_batch)
                row, captions = rows[part], (round_number, numbers[part])
                cells, drawn = sample_cells(
                    heat[row], _uniforms(cell_streams[row], *captions, heat.shape[1]), self.config.num_patches
                )
                uniforms = _uniforms(token_streams[row], *captions, self.config.max_tokens)
                texts = self._write(_gather(read, image[row], cells), drawn, uniforms)
                for place, text in zip(row, texts, strict=True):
                    if is_new(text, kept[place]):
                        kept[place].append(text)
        return kept

    def _heat(self, heatmaps: Tensor) -> Floats:
        heat = resize_heatmaps(heatmaps.float().clamp(min=0), self.grid).flatten(1).cpu().double().numpy()
        assert np.isfinite(heat).all(), "a heatmap is not finite"
        return heat

    def _write(self, read: list[KeysValues], drawn: NDArray[np.bool_], uniforms: Floats) -> list[str]:
        """The captions of (C, P) patches, with (C, max_tokens) numbers to draw by."""
        device = read[0][0].device
        readable = None if drawn.all() else torch.from_numpy(drawn)[:, None, None].to(device)
        draws = torch.from_numpy(uniforms).to(device)
        ids = torch.tensor(self._beginning, device=device).expand(len(drawn), -1)
        finished, past, written = torch.zeros(len(drawn), dtype=torch.bool, device=device), None, []
        for length in range(len(self._beginning), self.config.max_tokens):
            logits, past = decode_next(self._model.text_decoder, ids, past, read, readable)
            if length < self.config.min_tokens:
                logits[:, self._end_id] = -torch.inf
            token = sample_top_k(logits, draws[:, length], self.config.top_k).masked_fill(finished, self._pad_id)
            written.append(token)
            finished |= token == self._end_id
            if bool(finished.all()):
                break
            ids = token[:, None]
        return [self._text(tokens) for tokens in torch.stack(written, dim=1).tolist()]

    def _text(self, tokens: list[int]) -> str:
        tokens = tokens[: tokens.index(self._end_id)] if self._end_id in tokens else tokens
        text = clean_up(decode_plain(self._tokenizer, tokens)).strip()
        return text.removeprefix("##")  # WordPiece writes it where a text starts within a word


def load_captioner(reference: str, config: CaptionConfig | None = None) -> Captioner:
    """The captioner of a checkpoint, by hub id (`id` or `id@revision`) or local directory, in fp32 on the CPU.

    Raises:
        DataError: it is not there, or damaged.
        ConfigError: it is no captioner, is `scratch`, or does not fit the configuration.
    """
    checkpoint = load_pretrained(reference, ("BlipForConditionalGeneration",), key="pnp.captioner")
    return Captioner(checkpoint.model, checkpoint.tokenizer, config)


def is_new(caption: str, kept: Sequence[str]) -> bool:
    """Whether a caption says something, and not what a kept one says already, alone or as a part."""
    return bool(caption) and not any(caption in other for other in kept)


def resize_heatmaps(heatmaps: Tensor, grid: int) -> Tensor:
    """(R, g, g) to (R, grid, grid): means of the cells that fall together, or bilinear between the old centres."""
    if heatmaps.shape[-1] == grid:
        return heatmaps
    if heatmaps.shape[-1] > grid:
        return F.adaptive_avg_pool2d(heatmaps, grid)
    return F.interpolate(heatmaps[:, None], size=(grid, grid), mode="bilinear", align_corners=False)[:, 0]


def sample_cells(heat: Floats, uniforms: Floats, num_patches: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Cells drawn without replacement, each next one among the others with a probability proportional to its heat.

    Each cell rings after an exponential time whose rate is its heat, and the first to ring are drawn: this is the same
    (Efraimidis and Spirakis 2006), in one pass. A row with fewer hot cells gives all of them, one without any heat
    draws among all its cells alike.

    Args:
        heat: (C, cells), at least 0.
        uniforms: (C, cells) in (0, 1).

    Returns:
        (C, P) cells in ascending order with P = min(num_patches, cells), and which of the places hold one: the last
        ones of a row are 0 and hold none where it has fewer.
    """
    num_cells = heat.shape[1]
    heat = np.where(heat.any(axis=1, keepdims=True), heat, 1.0)
    with np.errstate(divide="ignore"):
        time = -np.log(uniforms) / heat
    count = min(num_patches, num_cells)
    cells = np.argpartition(time, count - 1, axis=1)[:, :count]
    hot = np.isfinite(np.take_along_axis(time, cells, axis=1))
    cells = np.sort(np.where(hot, cells, num_cells), axis=1)
    drawn = cells < num_cells
    return np.where(drawn, cells, 0), drawn


def sample_top_k(logits: Tensor, uniforms: Tensor, k: int) -> Tensor:
    """One token of the k likeliest, by the inverse of their cumulated probabilities in descending order.

    Args:
        logits: (C, vocabulary); equal ones are ordered by id.
        uniforms: (C,) float64 in (0, 1).

    Returns:
        (C,) ids.
    """
    scores = logits.float()
    k = min(k, scores.shape[1])
    # topk leaves open which of the scores that equal the k-th it gives, so it only tells the bound: the candidates come
    # by row and id, more than k of them where scores equal it, and a stable sort keeps equal ones in the order of ids
    bound = scores.topk(k).values[:, -1:]
    row, candidate = (scores >= bound).nonzero(as_tuple=True)
    column = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
    table = scores.new_full((len(scores), int(column.max()) + 1), -torch.inf)
    ids = torch.zeros_like(table, dtype=torch.long)
    table[row, column], ids[row, column] = scores[row, candidate], candidate
    best, order = table.sort(dim=1, descending=True, stable=True)
    cumulated = best[:, :k].softmax(dim=1).double().cumsum(dim=1)
    rank = (cumulated <= uniforms[:, None] * cumulated[:, -1:]).sum(dim=1, keepdim=True)
    return ids.gather(1, order.gather(1, rank))[:, 0]


def _gather(read: list[KeysValues], image: Tensor, cells: Ints) -> list[KeysValues]:
    """Keys and values (B, H, N, D/H) of whole images to those of (C, P) patches: (C, H, P, D/H).

    Projecting all N tokens of an image once costs a fraction of projecting the patches of each of its captions.
    """
    device = read[0][0].device
    places = (image[:, None].to(device), torch.from_numpy(cells + 1).to(device))  # the class token is in front

    def patches(tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2)[places].transpose(1, 2)

    return [(patches(keys), patches(values)) for keys, values in read]


def _streams(seed: int, purpose: str, keys: Sequence[str]) -> NDArray[np.uint64]:
    """A 64-bit hash of (seed, purpose, key) for each key."""
    digests = (hashlib.blake2b(f"{seed}/{purpose}/{key}".encode(), digest_size=8).digest() for key in keys)
    return np.array([int.from_bytes(digest, "little") for digest in digests], np.uint64)


def _uniforms(streams: NDArray[np.uint64], round_number: int, numbers: Ints, count: int) -> Floats:
    """(C, count) numbers in (0, 1): a hash of (stream, round, number of the caption, place)."""
    first = (np.uint64(round_number) << np.uint64(_NUMBER_BITS)) + numbers.astype(np.uint64)
    counters = (first << np.uint64(_PLACE_BITS))[:, None] + np.arange(count, dtype=np.uint64)
    bits = mix64(mix64(counters) ^ streams[:, None]) >> np.uint64(32)
    return (bits.astype(np.float64) + 0.5) * 2.0**-32  # of 32 bits, so that none rounds to 1
