"""Which private methods of TRL and transformers our classes replace, and how those look that were
tried.

A library may change them from one version to the next without a word, and what we put in their
place goes on without an error on something else. So each is known here by its code: a test
(``test_overridden.py``) finds what is replaced, compares, and names the method and the version
where one differs.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

LIBRARIES = ("trl", "transformers")

KNOWN: Mapping[str, frozenset[str]] = {
    "transformers.Trainer._get_train_sampler": frozenset({"982a01042942"}),
    "trl.DPOTrainer._compute_loss": frozenset({"763bb86aedbc"}),
    "trl.DPOTrainer._precompute_ref_logps": frozenset({"851269f2b3cb"}),
    "trl.DPOTrainer._prepare_dataset": frozenset({"2c15ee9e874b"}),
    "trl.DPOTrainer._set_signature_columns_if_needed": frozenset({"46c38500a269"}),
    "trl.GRPOTrainer._calculate_rewards": frozenset({"f3fdaaeaa2a6"}),
    "trl.GRPOTrainer._generate_and_score_completions": frozenset({"716df60ad827"}),
    "trl.GRPOTrainer._generate_single_turn": frozenset({"5fd96e098ed0"}),
    "trl.GRPOTrainer._tokenize_prompts": frozenset({"684053193b02"}),
    "trl.KTOTrainer._get_train_sampler": frozenset({"fb00955c14a4"}),
    "trl.KTOTrainer._precompute_ref_logps": frozenset({"607ebea432f0"}),
    "trl.KTOTrainer._prepare_dataset": frozenset({"a4ee35b757cb"}),
    "trl.RLOOTrainer._calculate_rewards": frozenset({"fdd3c73471c1"}),
    "trl.RLOOTrainer._generate_and_score_completions": frozenset({"f40301ff7d4e"}),
    "trl.RLOOTrainer._generate_single_turn": frozenset({"fd8709786656"}),
    "trl.RLOOTrainer._tokenize_prompts": frozenset({"d3dd0438beb1"}),
    "trl._BaseTrainer._send_telemetry": frozenset({"8f87f239d397"}),
}
"""Digests (:func:`code_of`) of the methods that were tried, by class and name of the method. Where
one is missing: read what changed, and what our method makes of it, run the tests of training, and
add it."""


def replaced(ours: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The private methods of :data:`LIBRARIES` that class ``ours`` or one before them in the order
    of resolution replaces: as ``library.Class._method``, and the method."""
    order = ours.__mro__
    names = {name for one in order for name in vars(one) if _is_private(name)}
    for name in sorted(names):
        owners = [one for one in order if name in vars(one)]
        theirs = next(filter(_is_of_library, owners), None)
        if theirs is not None and owners[0] is not theirs and callable(vars(theirs)[name]):
            library = theirs.__module__.partition(".")[0]
            yield f"{library}.{theirs.__name__}.{name}", vars(theirs)[name]


def code_of(method: Callable[..., Any]) -> str:
    """A digest of the source of ``method``, but for how it is set in lines."""
    words = inspect.getsource(inspect.unwrap(method)).split()
    return hashlib.blake2b(" ".join(words).encode(), digest_size=6).hexdigest()


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_of_library(one: type) -> bool:
    return one.__module__.partition(".")[0] in LIBRARIES
