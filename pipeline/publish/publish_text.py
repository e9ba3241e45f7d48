"""What publishing says on the terminal."""

from __future__ import annotations

from prefloop.pipeline.publish.publishing import Published

_NAMED = 20


def render_publish(found: Published) -> str:
    """What was found, and what was sent where."""
    lines = []
    if found.finds.kinds:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.finds.kinds.most_common())
        lines.append(f"found in the files: {kinds}")
        lines += [f"  {one}" for one in found.finds.named[:_NAMED]]
        more = found.finds.kinds.total() - min(_NAMED, len(found.finds.named))
        if more:
            lines.append(f"  and {more:,} more (--json names the first 1,000)")
    size = sum(found.files.values()) / 1e6
    what = f"{len(found.files):,} files, {size:,.1f} MB"
    if found.stopped:
        lines.append(
            "nothing was sent. Take these out of the prompts and answers, or give "
            "--allow-findings where they may be shared"
        )
    elif found.uploaded is None:
        lines += [f"  {name}: {count:,} bytes" for name, count in found.files.items()]
        lines.append(f"would be sent to the {found.kind} {found.repo}: {what}")
    elif found.uploaded.changed:
        lines.append(f"{found.uploaded.url}: {what}, commit {found.uploaded.commit}")
    else:
        lines.append(f"{found.uploaded.url}: has the same files already, no new commit")
    return "\n".join(lines)
