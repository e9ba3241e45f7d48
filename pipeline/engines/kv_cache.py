"""A KV cache that is written in place: transformers' dynamic one copies itself at every token."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer


class _InPlaceLayer(DynamicLayer):  # type: ignore[misc]  # mypy skips transformers
    """A ``DynamicLayer`` over a buffer of ``capacity`` positions; ``keys`` and ``values`` are views
    ([row, head, position, dimension]) of what is filled and shown."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.keys: torch.Tensor
        self.values: torch.Tensor
        self._capacity = capacity
        self._first = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append and return all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._key_buffer = self._buffer(key_states)
            self._value_buffer = self._buffer(value_states)
            start = 0
        else:
            start = self._end
        end = start + key_states.shape[-2]
        self._key_buffer[:, :, start:end] = key_states
        self._value_buffer[:, :, start:end] = value_states
        self._show(self._first, end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep (and repeat) the rows ``beam_idx``, with what is shown of them."""
        keys, values = self.keys, self.values
        self._key_buffer = self._buffer(keys, len(beam_idx))
        self._value_buffer = self._buffer(values, len(beam_idx))
        self._show(0, keys.shape[-2])
        self.keys.copy_(keys[beam_idx])
        self.values.copy_(values[beam_idx])

    def take(
        self, rows: torch.Tensor, layer: DynamicLayer, of: torch.Tensor, places: torch.Tensor
    ) -> None:
        """Fill ``rows`` with what ``layer`` holds of its sequences ``of`` [row] at ``places``
        [row, position]."""
        assert layer.keys is not None
        assert layer.values is not None
        found = [states[of[:, None], :, places] for states in (layer.keys, layer.values)]
        filled = places.shape[1]
        for buffer, states in zip((self._key_buffer, self._value_buffer), found, strict=True):
            buffer[rows, :, :filled] = states.transpose(1, 2)

    def reserve(self, rows: int, filled: int, like: DynamicLayer) -> None:
        """Room for ``rows``, of which ``filled`` positions count as there."""
        assert like.keys is not None
        assert like.values is not None
        self.lazy_initialization(like.keys, like.values)
        self._key_buffer = self._buffer(like.keys, rows)
        self._value_buffer = self._buffer(like.values, rows)
        self._show(0, filled)

    def clear(self) -> None:
        """Zero what counts as filled: what a mask hides must be a number all the same."""
        self.keys.zero_()
        self.values.zero_()

    def seat(self, rows: torch.Tensor, layer: DynamicLayer, of: torch.Tensor) -> None:
        """Have ``rows`` hold the sequences ``of`` [row] of ``layer``, ending where others do."""
        assert layer.keys is not None
        assert layer.values is not None
        places = slice(self._end - layer.keys.shape[-2], self._end)
        self._key_buffer[rows, :, places] = layer.keys[of]
        self._value_buffer[rows, :, places] = layer.values[of]

    def show(self, first: int) -> None:
        """Show what stands from ``first`` on."""
        self._show(first, self._end)

    def move(self, end: int) -> None:
        """Have what is shown end at ``end``."""
        keys, values = self.keys.clone(), self.values.clone()
        self._show(end - keys.shape[-2], end)
        self.keys.copy_(keys)
        self.values.copy_(values)

    @property
    def _end(self) -> int:
        return self._first + self.keys.shape[-2]

    def _show(self, first: int, end: int) -> None:
        self._first = first
        self.keys = self._key_buffer[:, :, first:end]
        self.values = self._value_buffer[:, :, first:end]

    def _buffer(self, like: torch.Tensor, rows: int | None = None) -> torch.Tensor:
        batch, heads, _, width = like.shape
        return like.new_empty((rows or batch, heads, self._capacity, width))


def arguments_of(model: Any) -> Collection[str]:
    """What the ``forward`` of ``model`` knows by name; of a model with an adapter, that of the one
    beneath."""
    beneath = model.get_base_model() if hasattr(model, "peft_config") else model
    return inspect.signature(beneath.forward).parameters


def cache_keyword(model: Any) -> str:
    """What ``model`` calls a cache: newer versions of transformers have another name for it, and
    warn at the old one; models of states alone, as Mamba, have their own."""
    known = arguments_of(model)
    if "past_key_values" in known:
        return "past_key_values"
    return next((name for name in ("cache", "cache_params") if name in known), "past_key_values")


def is_plain(model: PreTrainedModel) -> bool:
    """Whether all that ``model`` keeps of a token are keys and values, which can be taken from one
    sequence into another: no sliding windows, no state."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


class GatheredCache:
    """An in-place cache whose rows are taken from sequences that several of them share."""

    def __init__(self, model: PreTrainedModel, rows: int, filled: int, capacity: int) -> None:
        self.cache = in_place_cache(model, capacity)
        self._rows, self._filled = rows, filled

    def take(
        self, rows: torch.Tensor, source: DynamicCache, of: torch.Tensor, places: torch.Tensor
    ) -> None:
        """See ``_InPlaceLayer.take``."""
        for layer, given in zip(self.cache.layers, source.layers, strict=True):
            if not layer.is_initialized:
                layer.reserve(self._rows, self._filled, given)
            layer.take(rows, given, of, places)


class SeatedCache:
    """An in-place cache whose rows are given to other sequences when theirs have ended.

    All end at one position, the next token's, and begin where their lengths say.
    """

    def __init__(self, model: PreTrainedModel, rows: int, filled: int, capacity: int) -> None:
        self.cache = in_place_cache(model, capacity)
        self._rows, self._filled = rows, filled

    def seat(self, rows: torch.Tensor, source: DynamicCache, of: torch.Tensor) -> None:
        """See ``_InPlaceLayer.seat``."""
        for layer, given in zip(self.cache.layers, source.layers, strict=True):
            if not layer.is_initialized:
                layer.reserve(self._rows, self._filled, given)
                layer.clear()
            layer.seat(rows, given, of)

    def show(self, first: int) -> None:
        """See ``_InPlaceLayer.show``."""
        for layer in self.cache.layers:
            layer.show(first)

    def move(self, end: int) -> None:
        """See ``_InPlaceLayer.move``."""
        for layer in self.cache.layers:
            layer.move(end)


def in_place_cache(model: PreTrainedModel, capacity: int) -> DynamicCache:
    """A cache for ``model`` of at most ``capacity`` positions.

    Layers other than plain attention (sliding windows, linear attention) stay as transformers
    makes them.
    """
    cache = DynamicCache(config=model.config)
    cache.layers = [
        _InPlaceLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
