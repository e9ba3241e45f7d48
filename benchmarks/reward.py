"""A reward model over length-sorted batches against one answer at a time.

    python -m benchmarks.reward [--answers 512] [--width 384] [--layers 6] [--repeats 3]
                                [--batch-tokens 16384] [--model FOLDER]

Same model, same conversations, one process; encoding them is timed on all sides. One at a time is
how RLHFlow, SimPO and HALOs score; batches of 16 in the order of the answers, padded to the
longest, are what is usual otherwise. Answers have 5 to 300 words, most of them few. Without
--model, a Llama with random weights of the given size is made. The scores of all sides are
compared.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import WORDS, make_model
from prefloop.data.protocol import Message
from prefloop.labelers.scorers.sequence_scores import SequenceScorer

FIXED = 16
"""Rows of a batch that is not sorted."""

Scores = NDArray[np.float64]
Conversation = tuple[list[Message], str]


def make_conversations(count: int) -> list[Conversation]:
    """Four answers to each prompt, with log-normal lengths."""
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(3.2, 1.0, count), 5, 300).astype(int)
    return [
        (
            [{"role": "user", "content": f"Write about item {index // 4}."}],
            " ".join(draw.choice(WORDS, length)),
        )
        for index, length in enumerate(lengths)
    ]


def one_at_a_time(scorer: SequenceScorer, conversations: list[Conversation]) -> Scores:
    """Each conversation by itself."""
    return np.concatenate([scorer.score([scorer.encode(*one)]) for one in conversations])


def in_their_order(scorer: SequenceScorer, conversations: list[Conversation]) -> Scores:
    """Batches of ``FIXED`` as they come."""
    encoded = [scorer.encode(*one) for one in conversations]
    return np.concatenate(
        [scorer.score(encoded[start : start + FIXED]) for start in range(0, len(encoded), FIXED)]
    )


def length_sorted(scorer: SequenceScorer, conversations: list[Conversation]) -> Scores:
    """What the labeler does with a block."""
    return scorer.score([scorer.encode(*one) for one in conversations])


def main() -> None:
    """Run all sides in turn, several times, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=512)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--model", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not options.model:
            make_model(Path(folder), options.width, options.layers, scores=True)
        model = options.model or folder
        sorted_scorer = SequenceScorer(model, batch_tokens=options.batch_tokens)
        fixed_scorer = SequenceScorer(model)
        fixed_scorer._batch_tokens = 10**9  # a call is one batch, whatever its lengths
    conversations = make_conversations(options.answers)
    sides: dict[str, Callable[[], Scores]] = {
        "one at a time": lambda: one_at_a_time(sorted_scorer, conversations),
        f"batches of {FIXED} in their order": lambda: in_their_order(fixed_scorer, conversations),
        "length-sorted batches": lambda: length_sorted(sorted_scorer, conversations),
    }
    tokens = sum(len(sorted_scorer.encode(*one)) for one in conversations)
    length_sorted(sorted_scorer, conversations[:32])
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    found: dict[str, Scores] = {}
    for _ in range(options.repeats):
        for side, score in sides.items():
            began = time.perf_counter()
            found[side] = score()
            seconds[side].append(time.perf_counter() - began)
            print(f"{side}: {seconds[side][-1]:.2f} s", flush=True)
    reference = found["one at a time"]
    print(f"{len(conversations)} conversations, {tokens:,} tokens; median of {options.repeats}:")
    alone = statistics.median(seconds["one at a time"])
    for side, times in seconds.items():
        median = statistics.median(times)
        print(
            f"{side}: {len(conversations) / median:,.0f} answers/s, {tokens / median:,.0f} "
            f"tokens/s, ratio {alone / median:.2f}, largest difference of a score "
            f"{np.abs(found[side] - reference).max():.1e}"
        )


if __name__ == "__main__":
    main()
