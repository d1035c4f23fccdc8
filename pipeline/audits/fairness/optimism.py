"""How much the best of many candidates owes to being chosen on the images that score it. Pure.

Bootstrap bias correction (Tsamardinos, Greasidou and Borboudakis 2018, "Bootstrapping the out-of-sample predictions for
efficient and accurate cross-validation", Machine Learning 107): draw the validation images with
replacement, choose the best candidate on those drawn, score it on those not drawn, and average over many draws. It
trains nothing again. A draw holds 63 % of the images, so the choice is somewhat worse than the real one, and the
corrected score somewhat too low.

Images of one group are alike and whole in a part, so groups are drawn, not their images.

It corrects choosing among candidates whose predictions are out of sample, and that were there before any score was
known. Early stopping on validation has chosen before: what it adds stays in the predictions of every candidate. A
search that learns from scores has looked for candidates that suit these images: no resample shows what others would
have made it try. Both corrected scores are too good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.evaluation import metrics, rankings, statistics


class Corrected(NamedTuple):
    """A score with the choice taken out of it, its interval, and how often another candidate was the best of a draw."""

    value: float
    low: float
    high: float
    changed: float


def corrected(
    evaluations: Sequence[metrics.Evaluation],
    *,
    metric: str,
    samples: int,
    generator: np.random.Generator,
    confidence: float,
    groups: Sequence[str] = (),
) -> Corrected:
    """Return the bias-corrected score of the best of several candidates, all evaluated on the same validation images.

    The best is chosen in a draw as in a sweep: by the metric, then the log loss, then the order of the candidates. The
    interval is the percentile interval of the scores of images not drawn, of which there are only 37 %: too wide rather
    than too narrow. NaN where the metric is undefined on every draw. ``groups``: see `statistics.resamples`.
    """
    scores, chosen = [], []
    for drawn in statistics.resamples(len(evaluations[0]), samples=samples, generator=generator, groups=groups):
        inside = [evaluation.measure(drawn, names=(metric, "log_loss")) for evaluation in evaluations]
        values, losses = (np.stack([each[name] for each in inside], axis=1) for name in (metric, "log_loss"))
        found = rankings.places(values, losses, lower_is_better=metric in metrics.LOWER_IS_BETTER)
        best = found.argmin(axis=1)
        left = (drawn == 0).astype(np.float64)
        outside = np.stack([evaluation.measure(left, names=[metric])[metric] for evaluation in evaluations], axis=1)
        scores.append(np.take_along_axis(outside, best[:, np.newaxis], axis=1)[:, 0])
        chosen.append(best)
    values, best = np.concatenate(scores), np.concatenate(chosen)
    defined = values[~np.isnan(values)]
    value = float(defined.mean()) if len(defined) else np.nan
    interval = statistics.percentile_interval(value, values, confidence=confidence)
    first = rankings.places(
        *(
            np.array([[float(each.measure(names=[name])[name][0]) for each in evaluations]])
            for name in (metric, "log_loss")
        ),
        lower_is_better=metric in metrics.LOWER_IS_BETTER,
    ).argmin()
    return Corrected(*interval, float((best != first).mean()))
