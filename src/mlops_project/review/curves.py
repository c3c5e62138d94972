"""ROC and calibration curves of two revisions as small SVG images; no drawing library, no network."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import numpy as np

from mlops_project.files import atomic_path
from mlops_project.modeling.evaluation import MAX_CURVE_POINTS
from mlops_project.modeling.metrics import rank
from mlops_project.modeling.reliability import equal_mass_bins

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

SIZE, MARGIN = 320, 44
# Told apart by colour and by dash, for those who see no colours.
STROKES = (("#767676", "5 3"), ("#0b62a4", "none"))
Curve = tuple[np.ndarray, np.ndarray]


def write_images(folder: Path, tables: tuple[pd.DataFrame, pd.DataFrame], names: tuple[str, str]) -> list[Path]:
    """Write ``roc.svg`` and ``calibration.svg`` of held-out predictions (``y_true``, ``y_proba``); return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        "roc": ("ROC curve (class good)", "share of the bad approved", "share of the good approved", _roc),
        "calibration": ("Calibration", "predicted probability of default", "observed share of bad", _calibration),
    }
    paths = []
    for name, (title, x_label, y_label, curve) in drawn.items():
        text = draw(title, x_label, y_label, dict(zip(names, map(curve, tables), strict=True)))
        paths.append(folder / f"{name}.svg")
        with atomic_path(paths[-1]) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    return paths


def draw(title: str, x_label: str, y_label: str, curves: dict[str, Curve]) -> str:
    """Return an SVG of curves in the unit square, over its diagonal."""
    end, middle, side = MARGIN + SIZE, MARGIN + SIZE / 2, SIZE + 2 * MARGIN

    def place(x: float, y: float) -> str:
        return f"{MARGIN + SIZE * x:.1f},{MARGIN + SIZE * (1 - y):.1f}"

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{side}" height="{side}" font-family="sans-serif" font-size="11">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{middle}" y="24" text-anchor="middle" font-size="14">{escape(title)}</text>',
        f'<text x="{middle}" y="{end + 34}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{escape(y_label)}</text>',
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        lines += [
            f'<path d="M{place(tick, 0)} L{place(tick, 1)} M{place(0, tick)} L{place(1, tick)}" stroke="#e4e4e4"/>',
            f'<text x="{MARGIN + SIZE * tick}" y="{end + 16}" text-anchor="middle">{tick:g}</text>',
            f'<text x="{MARGIN - 6}" y="{end - SIZE * tick + 4}" text-anchor="end">{tick:g}</text>',
        ]
    lines.append(f'<path d="M{place(0, 0)} L{place(1, 1)}" stroke="#b8b8b8"/>')
    for number, ((name, (x, y)), (colour, dash)) in enumerate(zip(curves.items(), STROKES, strict=False)):
        points = " ".join(place(*point) for point in zip(x, y, strict=True))
        stroke = f'stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dash}" fill="none"'
        height = end - 14 - 16 * (len(curves) - 1 - number)
        lines += [
            f'<polyline points="{points}" {stroke}/>',
            f'<path d="M{end - 150} {height} h26" {stroke}/>',
            f'<text x="{end - 118}" y="{height + 4}">{escape(name[:20])}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _roc(table: pd.DataFrame) -> Curve:
    ranking = rank(table["y_true"].to_numpy(dtype=int), table["y_proba"].to_numpy())
    good, bad = ranking.good[0], ranking.bad[0]
    kept = np.unique(np.linspace(0, len(good) - 1, min(len(good), MAX_CURVE_POINTS)).round().astype(int))
    return np.r_[0, bad[kept] / bad[-1]], np.r_[0, good[kept] / good[-1]]


def _calibration(table: pd.DataFrame) -> Curve:
    p_good = table["y_proba"].to_numpy()
    bins = equal_mass_bins(p_good, np.ones(len(p_good)))
    means = [1 - table.loc[bins == number, ["y_proba", "y_true"]].mean() for number in np.unique(bins)]
    return np.array([mean["y_proba"] for mean in means]), np.array([mean["y_true"] for mean in means])
