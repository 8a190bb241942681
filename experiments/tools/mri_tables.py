"""Tables and lines of ``experiments.mri_sr evaluate``, from its cells "in-plane x2/METHOD": views of mri_sr.json."""

from __future__ import annotations

import numpy as np
from scipy import stats

BASE = "SR3, T = 100"
CLAIM = {50: 0.1, 25: 0.2}  # K: dB from SR3, in the paper's tables 5 and 6
SCORES = {"psnr": "PSNR", "ssim": "SSIM"}
FORM = {"psnr": "+.2f", "ssim": "+.4f"}
BUDGETS = {  # of the plot: a line through the ways that differ in how many calls they spend; one alone is a level
    "bicubic": ("bicubic",),
    "regression": ("regression",),
    "SR3": ("SR3, 25 steps", BASE),
    "SR3 late": tuple(f"SR3, late start at {K}" for K in (5, 10, 25)),
    "PartDiff 25, 50": ("PartDiff, K = 25", "PartDiff, K = 50"),
    "25 started lower": (*(f"PartDiff, K = 25, started at {t}" for t in (5, 10)), "PartDiff, K = 25"),
    "25 DDIM": tuple(f"PartDiff, K = 25, DDIM {n}" for n in (3, 5, 10)),
    "25 DiffPIR": tuple(f"PartDiff, K = 25, DiffPIR {n}" for n in (3, 5, 10)),
}


def interval(a, b):
    """(mean of a - b, half width of its 95 % interval): paired, by Student's t over the volumes."""
    d = np.subtract(a, b)
    half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else np.inf
    return float(d.mean()), float(half)


def paired(a, b, form):
    mean, half = interval(a, b)
    return f"{mean:{form}} ± {half:{form[1:]}}"


def parts(cells):
    """(kinds such as "in-plane x2", methods), in the order of the cells' first and last parts."""
    found = [name.split("/") for name in cells]
    return tuple(dict.fromkeys(kind for kind, _ in found)), tuple(dict.fromkeys(method for _, method in found))


def layout(cells, plane):
    """As the paper's tables 5 and 6: a row for each method, PSNR and SSIM of x2 and x4."""
    kinds, methods = parts(cells)
    kinds, rows = [kind for kind in kinds if kind.startswith(plane)], []
    for method in methods:
        of = {kind.split()[-1]: cells[f"{kind}/{method}"] for kind in kinds if f"{kind}/{method}" in cells}
        if of:
            row = {"method": method}
            for factor, c in of.items():
                row |= {f"{factor} {label}": float(np.mean(c[key])) for key, label in SCORES.items()}
                row[f"{factor} detail"] = round(float(np.mean(c["detail"])), 2)
            c = next(iter(of.values()))
            row |= {"network calls": c["network_calls"], "seconds": max(c["seconds"] for c in of.values())}
            rows.append(row | {"trained": c["checkpoint"] or None})
    return rows


def from_sr3(cells, key):
    """Paired differences from SR3 with its 100 steps."""
    kinds, methods = parts(cells)
    rows = []
    for method in methods:
        row = {"method": method}
        for kind in kinds:
            c, base = (cells.get(f"{kind}/{name}") for name in (method, BASE))
            if method != BASE and c is not None and base is not None:
                row[kind] = paired(c[key], base[key], FORM[key])
        if len(row) > 1:
            rows.append(row)
    return rows


def claim(cells):
    """The paper's claim: within so many dB of SR3, here "holds" where the whole interval is, "no" where none of it is."""
    rows = []
    for method, most in [(f"PartDiff, K = {K}{walk}", most) for walk in ("", ", drift") for K, most in CLAIM.items()]:
        row = {"method": method, "claim: dB from SR3, at most": most}
        for kind in parts(cells)[0]:
            c, base = (cells.get(f"{kind}/{name}") for name in (method, BASE))
            if c is not None and base is not None:
                mean, half = interval(c["psnr"], base["psnr"])
                word = "holds" if abs(mean) + half <= most else "no" if abs(mean) - half > most else "open"
                row[kind] = f"{word} ({mean:+.2f})"
        if len(row) > 2:
            rows.append(row)
    return rows


def between(cells):
    """Differences of neighbouring slices of the result over those of the truth, root mean squares: 1 where they agree."""
    kinds, methods = parts(cells)
    kinds = [kind for kind in kinds if kind.startswith("through")]
    found = [
        {"method": m} | {k: float(np.mean(cells[f"{k}/{m}"]["between"])) for k in kinds if f"{k}/{m}" in cells}
        for m in methods
    ]
    return [row for row in found if len(row) > 1]


def views(record):
    cells = record["cells"]
    return {
        "in-plane": lambda: layout(cells, "in-plane"),
        "through-plane": lambda: layout(cells, "through-plane"),
        "claim": lambda: claim(cells),
        "psnr from sr3": lambda: from_sr3(cells, "psnr"),
        "ssim from sr3": lambda: from_sr3(cells, "ssim"),
        "between": lambda: between(cells),
        "starts": lambda: record["starts"],
    }


def panels(cells):
    """Of the plot: means over the four degradations against network calls (one orientation)."""
    kinds, methods = parts(cells)
    found = []
    for key, title in (("psnr", "PSNR, dB"), ("ssim", "SSIM"), ("detail", "detail: share of the truth's")):
        lines = []
        for label, names in BUDGETS.items():
            of = [[cells[f"{kind}/{name}"] for kind in kinds] for name in names if name in methods]
            x = [np.log2(max(c[0]["network_calls"], 1)) for c in of]
            y = [float(np.mean([np.mean(c[key]) for c in four])) for four in of]
            if of and len(names) == 1:
                x, y = [0.0, np.log2(100)], y * 2
            if len(x) > 1:
                lines.append((label, x, y))
        found.append({"title": title, "x": "log2 of network calls", "lines": lines})
    return found
