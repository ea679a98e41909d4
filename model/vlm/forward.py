"""Sequences through a vision-language model of transformers: masks, positions, states and logits."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import Cache, PreTrainedModel

from model.vlm.batch import PADDING, PREFIX, Sequences
from model.vlm.sharing import additive, positions, visible


class Forward(NamedTuple):
    """A model, and how questions stand in its sequences."""

    model: PreTrainedModel
    shared: bool
    """Whether a sequence holds several questions that do not see each other; else it is one row, as any other."""

    @property
    def body(self) -> Any:
        """The model without its head over the vocabulary."""
        return self.model.base_model if self.model.base_model is not self.model else self.model.model

    def states(self, sequences: Sequences, store: Cache | None = None) -> Tensor:
        """(S, N, D): states of the language model.

        Args:
            store: takes keys and values.
        """
        given = self._beside(sequences)
        if self.shared:
            given |= {"attention_mask": self._mask(sequences), "position_ids": self.positions(sequences)}
        else:
            given |= {"attention_mask": (sequences.segment != PADDING).long()}
        return self._run(sequences.ids, store, given)

    def go_on(self, ids: Tensor, position: Tensor, seen: Tensor, distance: Tensor, store: Cache) -> Tensor:
        """(S, K, D): states of further tokens.

        Args:
            ids: (S, K)
            position: (S, K), or (axes, S, K)
            seen: (S, K, keys) bool: which of the stored tokens, and of these, each one sees.
            distance: (S, K, keys) int64: how many tokens further back those lie.
            store: keys and values of what came before.
        """
        return self._run(ids, store, {"attention_mask": self._as_layers(seen, distance), "position_ids": position})

    def logits(self, states: Tensor) -> Tensor:
        """(..., D) to (..., V) float32."""
        found = self.model.get_output_embeddings()(states).float()
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return found if cap is None else torch.tanh(found / cap) * cap

    def positions(self, sequences: Sequences) -> Tensor:
        """(S, N), or (axes, S, N) where the model has positions of several axes."""
        of_prefix = None
        if _has_axes(self.model):
            images = {name: value for name, value in sequences.media.items() if name.endswith("grid_thw")}
            of_prefix, _ = self.body.get_rope_index(
                sequences.ids,
                attention_mask=(sequences.segment == PREFIX).long(),
                **images,
                **sequences.kinds,
            )
        return positions(sequences.segment, sequences.place, of_prefix)

    def attend(self, implementation: str) -> None:
        """Choose how the language model attends; vision towers stay as they are."""
        self.model.set_attn_implementation({"text_config": implementation})

    @property
    def attends_by_blocks(self) -> bool:
        """Whether that is FlexAttention."""
        return self.model.config.get_text_config()._attn_implementation == "flex_attention"

    @property
    def has_blocks(self) -> bool:
        """Whether FlexAttention can compute it: one mask for all layers, and every one of them causal."""
        kinds = set(getattr(self.model.config.get_text_config(), "layer_types", None) or ())
        return self.model._supports_flex_attn and kinds <= {"full_attention"} and not _is_bidirectional(self.model)

    def _mask(self, sequences: Sequences) -> Any:
        if self.attends_by_blocks:
            return _block_mask(sequences.segment, sequences.place)
        seen = visible(sequences.segment, sequences.place)
        counted = positions(sequences.segment, sequences.place)
        together = _same_image(sequences.kinds["token_type_ids"]) if _is_bidirectional(self.model) else None
        return self._as_layers(seen, counted[:, :, None] - counted[:, None, :], together)

    def _as_layers(self, seen: Tensor, distance: Tensor, together: Tensor | None = None) -> Any:
        """The mask; under the names of the kinds of layers, where some of them see no further than a window.

        Args:
            distance: of keys, as if each question stood behind the prefix alone.
            together: pairs that see each other in any case.
        """
        text = self.model.config.get_text_config()
        kinds = set(getattr(text, "layer_types", None) or ())

        def mask(allowed: Tensor) -> Tensor:
            return additive(allowed if together is None else allowed | together, self.model.dtype)

        if "sliding_attention" not in kinds:
            return mask(seen)
        near = mask(seen & (distance < text.sliding_window))
        return {kind: near if kind == "sliding_attention" else mask(seen) for kind in kinds}

    def _beside(self, sequences: Sequences) -> dict[str, Any]:
        dtype = self.model.dtype
        media = {
            name: value.to(dtype) if value.is_floating_point() else value for name, value in sequences.media.items()
        }
        return {**media, **sequences.kinds}

    def _run(self, ids: Tensor, store: Cache | None, given: dict[str, Any]) -> Tensor:
        kept = {} if store is None else {_cache_name(type(self.body)): store}
        return self.body(input_ids=ids, use_cache=store is not None, **kept, **given).last_hidden_state


@cache
def _cache_name(body: type) -> str:
    """What the forward of a release of transformers calls its keys and values."""
    return "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"


def _has_axes(model: PreTrainedModel) -> bool:
    """Whether positions have several axes (M-RoPE)."""
    return hasattr(model.base_model, "get_rope_index")


def _is_bidirectional(model: PreTrainedModel) -> bool:
    """Whether the tokens of an image see each other."""
    return model.config.model_type == "gemma3"


def _same_image(kinds: Tensor) -> Tensor:
    """(S, N, N) bool: pairs of tokens in one run of image tokens."""
    is_image = kinds == 1
    starts = is_image & ~torch.nn.functional.pad(is_image, (1, 0))[:, :-1]
    number = torch.where(is_image, starts.cumsum(dim=1), 0)
    return (number[:, :, None] == number[:, None, :]) & is_image[:, :, None]


def sees(segment: Tensor, place: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """`visible` as FlexAttention asks for it: of (sequence, head, query, key)."""

    def seen(sequence: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own, other = segment[sequence, query], segment[sequence, key]
        before = place[sequence, key] <= place[sequence, query]
        return ((own == other) & before) | ((other == PREFIX) & (own > PREFIX))

    return seen


def _block_mask(segment: Tensor, place: Tensor) -> BlockMask:
    """Blocks of keys that nobody sees are not computed."""
    count, length = segment.shape
    return create_block_mask(sees(segment, place), count, None, length, length, device=segment.device)
