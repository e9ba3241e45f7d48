"""Calibrations as people read them in a terminal."""

from __future__ import annotations

from prefloop.pipeline.judging.calibrate import Calibrated, RunCalibration


def render_run_calibration(found: RunCalibration) -> str:
    """What people's labels say about a run."""
    lines = [f"{found.labels:,} pairs with labels of people"]
    lines += [render_calibrated(one) for one in found.calibrated]
    lines += [f"{name}: not calibrated: {why}" for name, why in found.skipped.items()]
    if found.accuracy is None:
        return "\n".join([*lines, f"accuracy of the dataset: unknown: {found.no_accuracy}"])
    whole, alone = found.accuracy.estimate, found.accuracy.by_people_alone
    lines.append(
        f"accuracy of the {found.accuracy.pairs:,} kept pairs: {100 * whole.value:.1f} % "
        f"[{100 * whole.low:.1f}, {100 * whole.high:.1f}] (prediction-powered, {whole.n:,} "
        f"labels of people; by these alone {100 * alone.value:.1f} % "
        f"[{100 * alone.low:.1f}, {100 * alone.high:.1f}])"
    )
    if found.uniform:
        lines.append(
            "  this holds if the labelled pairs were drawn at random: `prefloop queue` draws "
            "them so that it holds"
        )
    return "\n".join(lines)


def render_calibrated(one: Calibrated) -> str:
    """One labeler's calibration, and whether to use it."""
    use = (
        f"use it:  calibration: {one.path}   (beside the labeler's `name`)"
        if one.after.log_loss < one.before.log_loss
        else "no better than what the labeler says by itself: leave it out"
    )
    return (
        f"{one.labeler}: {one.method} on {one.n:,} pairs -> {one.path}\n"
        f"  calibration error {one.before.ece:.3f} -> {one.after.ece:.3f}, Brier score "
        f"{one.before.brier:.3f} -> {one.after.brier:.3f}, log loss "
        f"{one.before.log_loss:.3f} -> {one.after.log_loss:.3f} (after: cross-fitted)\n"
        f"  {use}"
    )
