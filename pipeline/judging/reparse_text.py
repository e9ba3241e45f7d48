"""What judges' answers say when they are read again, as people read it in a terminal."""

from __future__ import annotations

from prefloop.pipeline.judging.reparse import Reparsed


def render_reparsed(found: Reparsed) -> str:
    """Votes that changed, and what that did to the dataset."""
    lines = []
    for name, votes in found.votes.items():
        changed = found.changes[name]
        lines.append(f"{name}: {votes:,} votes read again, {changed.total():,} changed")
        lines += [
            f"  {before} -> {now}: {number:,}" for (before, now), number in changed.most_common()
        ]
    for each in found.rounds:
        lines += each.lines()
    if not found.rounds and any(found.changes.values()):
        lines.append("nothing was written; --write changes votes and dataset")
    return "\n".join(lines)
