"""What an export says on the terminal."""

from __future__ import annotations

from prefloop.pipeline.export.exporting import LEFT_OUT, Exported


def render_export(found: Exported) -> str:
    """Rows by file, what was left out and why."""
    lines = [f"{found.out / name}: {rows:,} rows" for name, rows in found.rows.items()]
    lines += [f"left out: {rows:,} rows: {why}" for why, rows in found.left_out.items()]
    if found.left_out:
        lines.append(f"they are in {found.out / LEFT_OUT}")
    if found.without_thoughts:
        lines.append(
            f"{found.without_thoughts:,} rows have thoughts, which {found.form} has no place for: "
            "the answers stand without them"
        )
    return "\n".join(lines)
