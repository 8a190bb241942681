"""A run killed with SIGKILL at any moment, and started again, ends with the parameters of an undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
STEPS = 200
OPTIONS = (
    f"debug --size 8 --patch 2 --batch 8 --classes 2 --steps {STEPS} --warmup 5 --cooldown 20 --log-every 10 "
    f"--checkpoint-every 20 --eval-images 8 --sample-every {STEPS}"
).split()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.integers(0, 256, (600, 8, 8), np.uint8), y=np.arange(600) % 2)
    return folder


def launch(place, name):
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "true",  # the six starts compile once
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(place / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    where = ["--data", str(place / "data.npz"), "--out", str(place / name)]
    command = [sys.executable, "-m", "experiments.train", *OPTIONS, "--devices", "2", *where]
    return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


def finish(process, code=0):
    _, said = process.communicate(timeout=300)
    assert process.returncode == code, said
    return said


def unfinished(folder):
    return [p.name for p in folder.glob("*.orbax-checkpoint-tmp*")]


def last_step(folder):
    return max((int(p.name) for p in folder.glob("*") if p.name.isdigit()), default=0)


def kill_when(process, condition):
    """SIGKILL as soon as the condition holds; -> whether it held before the process ended by itself."""
    while process.poll() is None:
        if condition():
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return True
        time.sleep(0.0005)
    process.communicate()
    return False


def parameters(folder):
    from diffjax.zoo import network
    from diffjax.zoo.prior import read_run

    ema, step = read_run(folder, "last")
    shapes = {name: a.shape for name, a in network.flat(ema["params"]).items()}
    signed = network.signature(json.loads((folder / "config.json").read_text()), shapes)
    assert signed == (folder / "signature.txt").read_text().strip(), "zoo.load need not trace the network"
    return step, [np.asarray(leaf) for leaf in jax.tree.leaves(ema)]


def test_killed_three_times_ends_as_the_undisturbed_run(place, capfd):
    finish(launch(place, "calm"))
    folder = place / "rough" / "checkpoints"
    rng = random.Random(0)  # where the two other kills fall; exactness must not depend on it
    first = 20 * rng.randint(1, 2)
    assert kill_when(launch(place, "rough"), lambda: last_step(folder) >= first)

    for _ in range(4):  # a save takes milliseconds: usually the first attempt hits
        begun = last_step(folder)
        assert kill_when(launch(place, "rough"), lambda begun=begun: last_step(folder) > begun and unfinished(folder))
        if unfinished(folder):
            break
    half = unfinished(folder)
    assert half, "the kill came during no save"
    before = last_step(folder)
    process = launch(place, "rough")
    pause = rng.random()
    assert kill_when(process, lambda: last_step(folder) > before and time.sleep(pause * 0.05) is None)

    saved = last_step(folder)
    process = launch(place, "rough")
    while process.poll() is None and last_step(folder) <= saved:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    said = finish(process, 128 + signal.SIGINT)
    saved = int(said.split("saved step ")[1].split()[0])
    assert last_step(folder) == saved < STEPS and "the same command goes on" in said, "an interrupt saves first"

    said = finish(launch(place, "rough"))
    assert f"resuming at step {saved} of {STEPS}" in said
    (step_calm, calm), (step_rough, rough) = parameters(place / "calm"), parameters(place / "rough")
    assert step_calm == step_rough == STEPS and not unfinished(folder)
    for a, b in zip(calm, rough):
        np.testing.assert_array_equal(a, b)
    assert max(np.abs(a).max() for a in calm) > 0

    lines = {n: [json.loads(line) for line in (place / n / "log.jsonl").read_text().splitlines()] for n in ("calm", "rough")}
    held_out = {n: {r["step"]: r["mean"] for r in log if r["kind"] == "held_out"} for n, log in lines.items()}
    extra = held_out["rough"].keys() - held_out["calm"].keys()
    assert held_out["calm"].items() <= held_out["rough"].items() and extra <= {saved}
    assert len({(r["kind"], r["step"]) for r in lines["rough"]}) == len(lines["rough"]), "no line twice"

    pictures = [sorted(p.name for p in (place / n).glob("*.png")) for n in ("calm", "rough")]
    assert pictures == [["samples_0000200.png"]] * 2
    before = (place / "calm" / "samples_0000200.png").read_bytes()
    assert before == (place / "rough" / "samples_0000200.png").read_bytes()

    from diffjax.cli import train
    from experiments import configs

    capfd.readouterr()
    line = [*OPTIONS, "--data", str(place / "data.npz"), "--out", str(place / "calm")]
    assert train.main(line, configs.load()) == 0
    assert f"already has {STEPS} steps" in capfd.readouterr().err, "two devices wrote it, eight read it here"
