"""Programs ended by signals at random moments: ``python tests/interrupts.py [TIMES]`` prints what became of each."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
RESTORE = "restore --prior PRIOR --limit 8 --samples 1 --steps 60 --batch 2 --devices 1 --out OUT"
TRAIN = ("train default --data DATA --size 8 --width 8 --blocks 1 --patch 2 --batch 8 --warmup 5 --cooldown 20 --log-every 10 "
         "--checkpoint-every 20 --eval-images 8 --sample-every 1000000 --steps 1000000 --devices 1 --out OUT")  # fmt: skip


def start(line, folder):
    places = {"PRIOR": folder / "tiny", "DATA": folder / "data.npz", "OUT": folder / "out"}
    words = [str(places.get(word, word)) for word in line.split()]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
    return subprocess.Popen([sys.executable, "-m", "diffjax", *words], env=env, cwd=folder, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)  # fmt: skip


def prepare(folder):
    import tiny_prior

    tiny_prior.write(folder / "tiny")
    x = np.random.default_rng(0).integers(0, 256, (600, 8, 8), np.uint8)
    np.savez(folder / "data.npz", x=x)


def end(process, number, moment):
    """-> (exit code, seconds from the signal to the end, what was said); moment: seconds, or a function that is true then."""
    begun = time.monotonic()
    reached = moment if callable(moment) else lambda: time.monotonic() - begun >= moment
    while not reached() and process.poll() is None and time.monotonic() - begun < 60:
        time.sleep(0.02)
    sent = time.monotonic()
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    return process.returncode, time.monotonic() - sent, said


def wrong(code, number, seconds, said, folder, patient):
    """What is not as it should be, or ""."""
    out, faults = folder / "out", []
    if code not in ({128 + number, 0} if number != signal.SIGKILL else {-9, 0}) and not (code == -number and not said):
        faults.append(f"exit code {code}")  # -number: before Python had started the program
    if seconds > 2 and not patient:
        faults.append(f"{seconds:.1f} s")
    if "Traceback" in said or "Segmentation" in said or "Fatal" in said:
        faults.append(said[-300:])
    hidden = [p.name for p in folder.iterdir() if p.name not in ("tiny", "data.npz", "out")]
    if hidden or (out.exists() and not any(out.iterdir())):
        faults.append(f"left {hidden or 'an empty folder'}")
    if not patient and number != signal.SIGKILL and out.exists() and code and "--resume does the rest" not in said:
        faults.append(f"left {[p.name for p in out.rglob('*')][:5]}")
    return "; ".join(faults)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    rng = np.random.default_rng(int(time.time()))
    for n in range(int(sys.argv[1]) if len(sys.argv) > 1 else 20):
        with tempfile.TemporaryDirectory() as place:
            prepare(Path(place))
            line, patient = ((RESTORE, False), (TRAIN, True))[n % 2]
            number = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)[n // 2 % 3]
            moment = float(rng.uniform(0.2, 14))
            code, seconds, said = end(start(line, Path(place)), number, moment)
            found = wrong(code, number, seconds, said, Path(place), patient) or "right"
            about = f"{line.split()[0]:8s}{number.name:8s} at {moment:5.2f} s: code {code}, {seconds:.2f} s"
            print(f"{about}, {found} | {said.splitlines()[-1:]}", flush=True)
