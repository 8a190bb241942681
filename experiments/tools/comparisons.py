"""The tables of ``experiments.evaluate``: means, layouts and paired differences, from cells of scores per image."""

from __future__ import annotations

import itertools

import numpy as np

MASKS = ("half", "wide", "expand", "altern", "sr2", "narrow", "text")  # the survey's seven
SCORES = ("psnr_hole", "lpips")
CEILING = 20 * np.log10(255)  # a hole of pure background can be filled exactly: one such image must not rule the mean
# what the papers lead one to expect to be positive in PSNR and negative in lpips
PAIRS = (
    ("repaint", "biharmonic"),
    ("copaint-fast", "repaint"),
    ("copaint", "repaint"),
    ("copaint-tt", "repaint"),
    ("copaint-tt", "copaint"),
)
# CoPaint's paper, CelebA-HQ at 256x256: lpips, average over the seven masks, in its order
PAPERS_ORDER = {
    "copaint-tt": 0.114,
    "copaint": 0.118,
    "repaint": 0.124,
    "copaint-fast": 0.147,
    "ddnm": 0.158,
    "blended": 0.185,
    "dps": 0.222,
    "ddrm": 0.288,
}


def interval(differences):
    """(mean, half width of the 95 % interval) of paired differences, normal approximation."""
    d = np.asarray(differences, np.float64)
    return float(d.mean()), float(1.96 * d.std(ddof=1) / np.sqrt(len(d)))


def difference(a, b, form):
    """The text of :func:`interval` of a - b; form: of a signed number."""
    mean, half = interval(np.subtract(a, b))
    return f"{mean:{form}} ± {half:{form[1:]}}"


def tables(cells: dict, masks, methods):
    """(rows of the scores, rows of the paired differences) from {(mask, method): cell}."""
    found, differences = [], []
    cells = {k: c if "reason" in c else c | {"psnr_hole": np.minimum(c["psnr_hole"], CEILING)} for k, c in cells.items()}
    pairs = [*PAIRS, *((m, "repaint") for m in methods if (m, "repaint") not in PAIRS and m not in ("repaint", "biharmonic"))]
    for mask, method in itertools.product(masks, methods):
        columns = {"hole PSNR": "psnr_hole", "lpips@64": "lpips"}
        found.append({"mask": mask, "method": method, **summary(cells[mask, method], columns)})
    for method in methods:  # image by image
        of = [cells[mask, method] for mask in masks]
        missing = any("reason" in c for c in of)
        average = {"reason": "a mask is missing"} if missing else {k: np.mean([c[k] for c in of], 0) for k in SCORES}
        cells["average", method] = average
    for mask in (*masks, "average"):
        for a, b in pairs:
            if all(m in methods and "reason" not in cells[mask, m] for m in (a, b)):
                of = lambda key, form: difference(cells[mask, a][key], cells[mask, b][key], form)  # noqa: B023
                differences.append({"mask": mask, "difference": f"{a} - {b}", "hole PSNR": of("psnr_hole", "+.2f"),
                                    "lpips@64": of("lpips", "+.4f")})  # fmt: skip
    return found, differences


def order(cells, masks, methods):
    """The paper's order beside ours: lpips averaged over the masks, and the paired difference from the method before."""
    rows, before = [], None
    for method, papers in PAPERS_ORDER.items():
        of = [cells.get((mask, method), {"reason": "not run"}) for mask in masks]
        if method in methods and not any("reason" in c for c in of):
            average = np.mean([c["lpips"] for c in of], 0)
            row = {"method": method, "paper, CelebA-HQ": papers, "here": float(average.mean())}
            row["from the line above"] = None if before is None else difference(average, before, "+.4f")
            rows.append(row)
            before = average
    return rows


def across(differences, masks, column):
    """The differences of one column, a row each, a column for each mask."""
    rows = {}
    for d in differences:
        rows.setdefault(d["difference"], {"difference": d["difference"]} | dict.fromkeys(masks))[d["mask"]] = d[column]
    return list(rows.values())


def summary(c, columns) -> dict:
    """Means over the images and network calls of a cell; the reason where there are none."""
    if "reason" in c:
        return {"why": c["reason"]}
    means = {label: float(np.mean(c[key])) for label, key in columns.items()}
    return means | {"network calls": c["network_calls"]}


def layout(cells, columns, methods, key, most=np.inf):
    """A row for each method, a column for each of ``columns``, the last one their average (None where one is missing)."""
    rows = []
    for method in methods:
        values = [cells[c, method].get(key) for c in columns]
        means = [None if v is None else float(np.minimum(v, most).mean()) for v in values]
        average = None if None in means else float(np.mean(means))
        rows.append({"method": method, **dict(zip(columns, means)), "average": average})
    return rows


def task_tables(cells, tasks, noises, methods, baseline):
    """(rows of the scores, {noise: rows by method}, rows of paired differences) from {(task, noise, method): cell}."""
    found, by_method, differences = [], {n: [{"method": m} for m in methods] for n in noises}, []
    columns = {"PSNR": "psnr", "SSIM": "ssim", "lpips@64": "lpips", "misfit": "misfit"}
    for noise in noises:
        for task in tasks:
            of = {m: cells[task, noise, m] for m in methods}
            scored = [m for m in methods if "reason" not in of[m]]
            best = min(scored, key=lambda m: np.mean(of[m]["lpips"]), default=None)
            for method, row in zip(methods, by_method[noise]):
                c = of[method]
                here = summary(c, columns)
                if method == best:
                    here["lpips from best"] = "best"
                elif method in scored:
                    here["lpips from best"] = difference(c["lpips"], of[best]["lpips"], "+.4f")
                found.append({"task": task, "noise": noise, "method": method, **here})
                row["network calls"] = row.get("network calls") or c.get("network_calls")
                row |= {f"{task} PSNR": here.get("PSNR"), f"{task} lpips": here.get("lpips@64")}
                if method in scored and baseline in scored and method != baseline:
                    differences.append({"task": task, "noise": noise, "difference": f"{method} - {baseline}",
                                        "PSNR": difference(c["psnr"], of[baseline]["psnr"], "+.2f"),
                                        "lpips@64": difference(c["lpips"], of[baseline]["lpips"], "+.4f")})  # fmt: skip
    return found, by_method, differences
