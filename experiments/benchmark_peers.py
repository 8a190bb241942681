"""diffjax beside what users would pick: ``python -m experiments.benchmark peers``.

Each row is one work done by diffjax and by a peer with the same weights (ours, exported by diffjax.convert) and the same
number of network calls, in one run: diffjax and the peers take turns, in processes of their own, the least of several rounds.
"ours" and "theirs" are milliseconds per image and call: CPU time on one core, wall time on more. "ratio" is theirs over ours:
above 1 diffjax is faster, below 1 slower. Compilation is not counted. Random or tiny networks: speed only, no quality.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from . import benchmark_clock as clock
from . import record
from .tools.study import UserError

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ["torch==2.14.1", "torchvision==0.29.1", "diffusers==0.42.1", "azula==0.11.1", "deepinv==0.5.0"]
OLDEST = (3, 12)
STAMP = "benchmark_peers.txt"


# --- their environment ----------------------------------------------------------------------------------------------


def version(python) -> tuple | None:
    """(major, minor) of an interpreter, or None where it is none."""
    try:
        code = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
        found = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60)
    except OSError:
        return None
    return tuple(map(int, found.stdout.split())) if found.returncode == 0 and found.stdout else None


def interpreter(wanted: str | None) -> str:
    """A Python of at least `OLDEST` for the peers: the one named, or this one, or one on the PATH."""
    newer = [f"python3.{minor}" for minor in range(OLDEST[1], OLDEST[1] + 4)]
    candidates = [wanted] if wanted else [sys.executable, *filter(None, map(shutil.which, newer))]
    found = {python: version(python) for python in candidates}
    for python, number in found.items():
        if number and number >= OLDEST:
            return python
    tried = ", ".join(f"{p} is " + (".".join(map(str, v)) if v else "no Python with venv") for p, v in found.items())
    raise UserError(f"the peers need Python {'.'.join(map(str, OLDEST))} or later ({tried}): name one with --python")


def environment(folder: pathlib.Path, python: str | None) -> pathlib.Path:
    """The peers' interpreter; their environment is made, or made anew where it holds other versions."""
    stamp, own = folder / STAMP, folder / "bin" / "python"
    if stamp.is_file() and stamp.read_text().split() == PACKAGES:
        return own
    if folder.exists() and not stamp.is_file() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise UserError(f"{folder} exists and is no environment of Python: name another with --env")
    python = interpreter(python)
    print(
        f"making {folder} with {python}: {', '.join(PACKAGES)} (some minutes, several GB with PyTorch's own wheel)", flush=True
    )
    start = time.time()
    for command in ([python, "-m", "venv", "--clear", folder], [own, "-m", "pip", "install", "-q", *PACKAGES]):
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            reason = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), "see pip")
            raise UserError(f"could not make the peers' environment in {folder}: {reason}")
    stamp.write_text("\n".join(PACKAGES) + "\n")
    print(f"made in {time.time() - start:.0f} s", flush=True)
    return own


def installed(python) -> dict:
    """Versions in the peers' environment, and what it takes on disk."""
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    versions = {p["name"]: p["version"] for p in json.loads(listed.stdout)}
    size = sum(f.lstat().st_size for f in python.parents[1].rglob("*") if f.is_file())
    named = [p.split("==")[0] for p in PACKAGES]
    number = ".".join(map(str, version(python)))
    return {"python": number, **{n: versions[n] for n in named}, "packages": len(versions), "size_MB": round(size / 2**20)}


# --- what is done ---------------------------------------------------------------------------------------------------


def work(kind, net, side, batch, calls=1, task="inpainting"):
    return dict(kind=kind, net=net, side=side, batch=batch, calls=calls, task=task)


def works(quick: bool):
    """[(work, [(peer, how)], all cores)]; calls of a walk are fewer for larger batches."""
    torch, eager = [("torch", "eager"), ("torch", "channels_last")], [("torch", "eager")]
    compiled = [*torch, ("torch", "compile")]
    walkers = [(peer, "eager") for peer in ("diffusers", "azula", "deepinv")]
    a, b, d = ([(peer, "eager") for peer in names] for names in (("azula", "deepinv"), ("azula", "diffusers"), ("deepinv",)))
    gradient = [("torch", "eager"), ("torch", "checkpointed")]
    if quick:
        return [
            (work("forward", "adm", 32, 1), torch, False),
            (work("gradient", "fashion", 32, 2), eager, False),
            (work("ddim", "adm", 32, 1, 5), walkers, False),
            *((work(kind, "adm", 32, 1, calls), peers, False)
              for kind, calls, peers in (("dps", 5, a), ("diffpir", 5, a), ("ddrm", 5, d), ("repaint", 40, b))),
            (work("diffpir", "adm", 32, 1, 5, "deblurring"), a, False),
            (work("weights", "fashion", 32, 1, 4), gradient, False),
            (work("ddim", "adm", 32, 2 * len(clock.cores()), 2), walkers[:1], True),
        ]  # fmt: skip
    one = [(work(kind, "adm", 32, batch), compiled) for batch in (1, 8, 32) for kind in ("forward", "gradient")]
    one += [(work(kind, "adm", side, batch), torch) for side, batch in ((64, 1), (64, 8), (128, 1), (256, 1))
            for kind in ("forward", "gradient")]  # fmt: skip
    one += [(work(kind, "fashion", 32, batch), eager) for batch in (1, 8, 32) for kind in ("forward", "gradient")]
    one += [(work("ddim", "adm", 32, batch, calls), walkers) for batch, calls in ((1, 100), (8, 25), (32, 10))]
    one += [(work("ddim", "fashion", 32, batch, calls), walkers[:1]) for batch, calls in ((1, 100), (8, 50))]
    one += [(work("dps", "adm", side, batch, calls), a) for side, batch, calls in ((32, 1, 100), (32, 8, 25), (64, 1, 50))]
    one += [(work("diffpir", "adm", 32, 1, 100, task), a) for task in ("inpainting", "deblurring")]
    one += [(work("diffpir", "adm", side, batch, calls, "deblurring"), a) for side, batch, calls in ((32, 8, 25), (64, 1, 50))]
    one += [(work("ddrm", "adm", 32, batch, 20, task), d)
            for batch, task in ((1, "inpainting"), (8, "inpainting"), (1, "deblurring"))]  # fmt: skip
    one += [(work("repaint", "adm", 32, batch, 100), b) for batch in (1, 8)]
    one += [(work("weights", net, 32, 1, 8), gradient) for net in ("fashion", "adm")]
    spread = [(work("ddim", "adm", 32, 1, 40), walkers[:2]), (work("ddim", "adm", 32, 8, 8), walkers[:2])]
    spread += [(work("ddim", net, side, batch, calls), walkers[:1])
               for net, side, batch, calls in (("adm", 32, 32, 4), ("adm", 64, 8, 4), ("fashion", 32, 16, 20))]  # fmt: skip
    return [(*w, False) for w in one] + [(*w, True) for w in spread]


NAMES = {"forward": "network", "gradient": "network and gradient", "weights": "gradient by weights through DDIM",
         "ddim": "DDIM", "dps": "DPS", "diffpir": "DiffPIR", "ddrm": "DDRM", "repaint": "RePaint"}  # fmt: skip


def name(w) -> str:
    task = f", {w['task']}" if w["kind"] in ("dps", "diffpir", "ddrm") else ""
    calls = "" if w["kind"] in ("forward", "gradient") else f", {w['calls']} calls"
    return f"{NAMES[w['kind']]}{task}, {w['net']} {w['side']}x{w['side']}, batch {w['batch']}{calls}"


# --- the contest ----------------------------------------------------------------------------------------------------


class Contestant:
    """A process that does works when told; on one core, or on all of them."""

    def __init__(self, command, spread: bool):
        threads = str(len(clock.cores()) if spread else 1)
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={threads}".strip()
        env = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        pinned = hasattr(os, "sched_setaffinity") and not spread
        core = {clock.cores()[-1]}
        self.errors = tempfile.TemporaryFile("w+")
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        keep = (lambda: os.sched_setaffinity(0, core)) if pinned else None
        self.process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=env, preexec_fn=keep, **pipes)

    def ask(self, **question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.errors.seek(0)
            last = self.errors.read().strip().splitlines()[-1:]
            raise UserError(f"{' '.join(map(str, self.process.args))} ended in {question}: {' '.join(last)}")
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.errors.close()


def rows_of(w, peers, spread, ours, theirs, rounds, least):
    """The rows of one work: ours and the peers take turns, least seconds of all rounds."""
    first = ours.ask(prepare=w)
    prepared = [theirs.ask(prepare=w | {"peer": peer, "how": how}) for peer, how in peers]
    turns = [(ours, 0), *((theirs, n) for n in range(len(peers)))]
    which = "wall" if spread else "cpu"
    best = [float("inf")] * len(turns)
    for _ in range(rounds):
        for n, (who, number) in enumerate(turns):
            best[n] = min(best[n], who.ask(run=number, least=least)[which])
    for who in (ours, theirs):
        who.ask(forget=True)
    mine, *others = (1e3 * s / w["batch"] / a["calls"] for s, a in zip(best, [first, *prepared]))
    for (peer, how), other, answer in zip(peers, others, prepared):
        yield {
            "work": name(w),
            "cores": len(clock.cores()) if spread else 1,
            "peer": peer if how == "eager" else f"{peer}, {how}".replace("_", " "),
            "ours": round(mine, 3),
            "theirs": round(other, 3),
            "ratio": round(other / mine, 2),
            "note": "" if answer["finite"] else "the peer's result is not finite",
        }


def run(options) -> int:
    folder = pathlib.Path(options.env).resolve()
    python = environment(folder, options.python)
    packages = installed(python)
    print("peers: " + ", ".join(f"{k} {v}" for k, v in packages.items()), flush=True)
    rounds, least = (2, 0.0) if options.quick else (options.rounds, 0.3)
    with tempfile.TemporaryDirectory() as weights:
        code = "import pathlib, sys; from experiments.benchmark_ours import export; export(pathlib.Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", code, weights], cwd=ROOT, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
        commands = [sys.executable, "-m", "experiments.benchmark_ours"], [python, "-m", "experiments.benchmark_torch", weights]
        found, pairs = [], {}
        chosen = [w for w in works(options.quick) if options.only in name(w[0])]
        if not chosen:
            raise UserError(f"no work contains {options.only!r}: try DDIM, DPS, network, batch 8")
        for n, (w, peers, spread) in enumerate(chosen, start=1):
            if spread not in pairs:
                pairs[spread] = tuple(Contestant(command, spread) for command in commands)
            for row in rows_of(w, peers, spread, *pairs[spread], rounds, least):
                found.append(row)
                print(f"[{n}/{len(chosen)}] {row['work']}, {row['cores']} core(s): {row['peer']} {row['ratio']} "
                      f"(load {clock.load()})", flush=True)  # fmt: skip
        differences = pairs[chosen[0][2]][1].ask(differences=True)
        for contestant in (c for pair in pairs.values() for c in pair):
            contestant.close()
        if max(differences.values()) > 1e-4:
            raise UserError(f"the peers' networks differ from ours: {differences}")
    asked = " --quick" if options.quick else f" --rounds {options.rounds}"
    command = f"python -m experiments.benchmark peers{asked}"
    which = "benchmark_peers" + ("_quick" if options.quick or options.only else "")
    print(record.write(which, command, found, peers=packages, rounds=rounds, load=clock.load(), differences=differences))
    return 0
