"""The tables of ``experiments.calibrate``: by family, all in one, beside other libraries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

FAMILIES = ("gauss", "mix5", "mcg8", "mcg80")
SCORES = ("H", "sw2w", "var_ratio", "w_tv")
PEERS = Path(__file__).parents[1] / "peers.json"


def mean(cells, key) -> float:
    values = np.array([c[key] for c in cells], float)
    if key == "w_tv":
        return float(values.mean())
    return float(np.exp(np.log(np.maximum(values, 1e-9)).mean()))


def summary(cells: dict, families: dict) -> list[dict]:
    """A row per (method, kind, budget, family) from {(method, kind, calls): {(problem, seed): cell}}."""
    rows = []
    for (method, kind, calls), found in cells.items():
        for family, problems in families.items():
            here = {k: c for k, c in found.items() if k[0] in problems}
            if not here:
                continue
            able = [c for c in here.values() if "cannot" not in c]
            done = {p for (p, _), c in here.items() if "cannot" not in c}
            row = {"method": method, "kind": kind, "budget": calls, "family": family}
            row |= {"problems": f"{len(done)} of {len(problems)}", "seeds": len({s for _, s in here})}
            if able:
                row |= {k: round(float(np.mean([c[k] for c in able]))) for k in ("calls", "products")}
                row |= {k: round(mean(able, k), 4) for k in SCORES}
            row["cannot"] = next((c["cannot"] for c in here.values() if "cannot" in c), "")
            rows.append(row)
    return rows


def wide(rows: list[dict], families, settings: dict) -> list[dict]:
    """A row per (method, kind, budget), a column of H per family."""
    out = {}
    for r in rows:
        empty = {"method": r["method"], "kind": r["kind"], "calls": None, "products": None, "seeds": None}
        empty |= {f"H {family}": None for family in families} | {"setting": ""}
        line = out.setdefault((r["method"], r["kind"], r["budget"]), empty)
        for key in ("calls", "products"):
            line[key] = max((v for v in (line.get(key), r.get(key)) if v is not None), default=None)
        line["seeds"] = min((v for v in (line["seeds"], r.get("seeds")) if v is not None), default=None)
        some = "" if r["problems"].split()[0] == r["problems"].split()[2] else "*"
        line[f"H {r['family']}"] = f"{r['H']:.3g}{some}" if "H" in r else "cannot"
        line["setting"] = settings.get((r["method"], r["kind"]), "")
    return [line for _, line in sorted(out.items(), key=lambda item: (item[0][2], item[0][1] == "tuned"))]


def peer_rows() -> list[dict]:
    """The measured peers, a dict per (kind, solver, calls, family)."""
    found = json.loads(PEERS.read_text())
    return [dict(zip(found["columns"], row)) for row in found["rows"]]


def best_of_libraries(rows: list[dict], families) -> list[dict]:
    """A row per kind and budget: the least H of any peer in each family, chosen afterwards, as no peer is the best in all."""
    out = []
    for kind, calls in dict.fromkeys((r["kind"], r["budget"]) for r in rows):
        name = {"reference": "exact draws"}.get(kind, "best library")
        if kind != "reference" or calls == 0:
            line = {"method": name, "kind": kind, "calls": calls or None, "products": None}
            of = {f: [r["H"] for r in rows if (r["kind"], r["budget"], r["family"]) == (kind, calls, f)] for f in families}
            out.append(line | {f"H {f}": f"{min(h):.3g}" if h else None for f, h in of.items()})
    return out


def compared(cells: dict, methods: dict, peers: list[dict]) -> list[dict]:
    """Ours beside the best of each kind of peer, on the problems that the peer ran on; seeds averaged."""
    rows = []
    for (method, kind, calls), found in cells.items():
        for p in peers:
            if p["kind"] != kind or p["calls"] != calls or not p["solver"].startswith(methods[method].peers or "\0"):
                continue
            ours = [c for (problem, _), c in found.items() if problem in p["problems"]]
            if not ours or any("cannot" in c for c in ours):
                continue
            h = mean(ours, "H")
            rows.append({"method": method, "peer": p["solver"], "kind": kind, "calls": calls, "family": p["family"],
                         "ours": round(h, 3), "theirs": round(p["H"], 3),
                         "as close": "yes" if h <= p["H"] * 1.05 else "no"})  # fmt: skip
    order, known = list(methods), list(FAMILIES)
    return sorted(rows, key=lambda r: (order.index(r["method"]), r["kind"], r["calls"], known.index(r["family"]), r["peer"]))


# --- views of a record ---


def peers_of(record) -> list[dict]:
    """Measured peers as rows like the record's own; none where the record is of other problems than theirs."""
    if not record["peers"]:
        return []
    full = lambda r: f"{len(r['problems'])} of {record['peers'][r['family']]}"
    named = lambda r: r | {"method": r["solver"], "budget": r["calls"], "products": None, "problems": full(r)}
    return [named(r) for r in peer_rows() if r["calls"] in (0, *record["budgets"])]  # 0: exact draws, prior's


def libraries(record) -> list[dict]:
    """Every peer."""
    return wide(peers_of(record), record["families"], {})


def settings(record) -> list[dict]:
    """What the methods ran with."""
    return [dict(zip(("method", "kind", "setting"), (*name.split("/"), text))) for name, text in record["settings"].items()]


def own(record) -> list[dict]:
    return wide(record["rows"], record["families"], {tuple(k.split("/")): text for k, text in record["settings"].items()})


def unable(record) -> list[dict]:
    """What a method cannot do, and why."""
    found = {}
    for row in record["rows"]:
        if row["cannot"]:
            found.setdefault((row["method"], row["family"], row["cannot"]), row["problems"])
    return [{"method": m, "family": f, "problems": some, "why": why} for (m, f, why), some in found.items()]


def short(record) -> list[dict]:
    """Ours, and the best of the libraries."""
    return own(record) + best_of_libraries(peers_of(record), record["families"])


def whole(record) -> list[dict]:
    """Ours, and every peer."""
    return own(record) + libraries(record)
