"""Tables as views of a record: ``rows(record, "lpips")``. What can be computed from a result is not kept beside it."""

from __future__ import annotations

import numpy as np

from . import calibration_tables as calibration
from . import mri_tables
from .comparisons import CEILING, MASKS, across, layout, order, tables, task_tables
from .study import unknown


def rows(record: dict, view: str | None = None) -> list[dict]:
    """The rows of a view of the record; its first one by default. Raises UserError for a name that it has not."""
    views = names(record)
    view = view or next(iter(views))
    if view not in views:
        raise unknown("view", view, views)
    return views[view]()


def names(record: dict) -> dict:
    """{view: function that makes its rows}"""
    return KINDS[record.get("kind", "rows")](record)


def plain(record):
    return {"rows": lambda: record["rows"]}


def parts(record):
    """({(part, ..., method): cell}, parts of the first place, methods), in the order they were run in."""
    cells = {tuple(name.split("/")): {k: v for k, v in c.items() if k != "made"} for name, c in record["cells"].items()}
    return cells, list(dict.fromkeys(k[0] for k in cells)), list(dict.fromkeys(k[-1] for k in cells))


def whole(row):
    """The row with whole numbers as such."""
    return {k: int(v) if isinstance(v, float) and v == int(v) else v for k, v in row.items()}


def inpainting(record):
    """Of cells "mask/method" with psnr_hole and lpips of every image."""
    cells, masks, methods = parts(record)
    both = lambda: tables(dict(cells), masks, methods)

    def by_mask():
        found = [{"method": m} for m in methods]
        for score, key, most in (("lpips", "lpips", np.inf), ("PSNR", "psnr_hole", CEILING)):
            for row, line in zip(found, layout(cells, masks, methods, key, most)):
                row |= {f"{mask} {score}": value for mask, value in line.items() if mask != "method"}
        return found

    made = {
        "scores": lambda: both()[0],
        "lpips": lambda: layout(cells, masks, methods, "lpips"),
        "psnr": lambda: layout(cells, masks, methods, "psnr_hole", CEILING),
        "calls": lambda: [whole(row) for row in layout(cells, masks, methods, "network_calls")],
        "by mask": by_mask,
        "differences": lambda: both()[1],
        "differences lpips": lambda: across(both()[1], (*masks, "average"), "lpips@64"),
        "differences psnr": lambda: across(both()[1], (*masks, "average"), "hole PSNR"),
    }
    return made | ({"order": lambda: order(cells, masks, methods)} if set(MASKS) <= set(masks) else {})


def tasks(record):
    """Of cells "task/noise/method" with psnr, ssim, lpips and misfit of every image."""
    cells, names_, methods = parts(record)
    cells = {(task, float(noise), method): cell for (task, noise, method), cell in cells.items()}
    noises = list(dict.fromkeys(key[1] for key in cells))
    made = lambda: task_tables(cells, names_, noises, methods, record["baseline"])
    views = {"scores": lambda: made()[0], "differences": lambda: made()[2]}
    label = {0.05: "noisy", 0.0: "noiseless"}
    return views | {label.get(n, f"noise {n:g}"): lambda n=n: made()[1][n] for n in noises}


def calibrated(record):
    """Of rows by method, kind, budget and family, beside experiments/peers.json."""
    return {
        "short": lambda: calibration.short(record),
        "all": lambda: calibration.whole(record),
        "families": lambda: [{k: v for k, v in row.items() if k != "cannot"} for row in record["rows"] if "H" in row],
        "cannot": lambda: calibration.unable(record),
        "peers": lambda: record["beside"],
        "libraries": lambda: calibration.libraries(record),
        "settings": lambda: calibration.settings(record),
    }


def seconds(record):
    """Of cells "device/method" with calls and seconds."""
    found = {}
    for name, cell in record["cells"].items():
        device, method = name.split("/")
        row = found.setdefault(method, {"method": method, "network calls": cell["network_calls"]})
        row[f"{device}: s / image"] = cell["seconds"]
    return {"rows": lambda: list(found.values())}


def late_starts(record):
    return {"calls": lambda: record["rows"], "starts": lambda: record["starts"], "residues": lambda: record["residues"]}


def enlarged(record):
    more = [name for name in record if name.split()[0] in ("schedules", "levels", "shifts")]
    return {"garments": lambda: record["rows"], **{name: lambda name=name: record[name] for name in more}}


KINDS = {
    "downstream": enlarged,
    "rows": plain,
    "partdiff": late_starts,
    "inpainting": inpainting,
    "tasks": tasks,
    "calibration": calibrated,
    "seconds": seconds,
    "mri": mri_tables.views,
}
