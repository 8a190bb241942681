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
STEPS = 120
OPTIONS = f"debug --size 8 --patch 2 --steps {STEPS} --warmup 5 --cooldown 20 --batch 8 --checkpoint-every 10 --log-every 5 " \
          "--sample-every 60 --eval-images 8 --classes 2 --devices 2".split()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.integers(0, 256, (600, 8, 8), np.uint8), y=np.arange(600) % 2)
    return folder


def launch(place, name, *more):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(place / "cache"),
           "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    where = ["--data", str(place / "data.npz"), "--out", str(place / name)]
    command = [sys.executable, "-m", "experiments.train", *OPTIONS, *where, *more]
    return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
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
    from experiments.training_run import load

    _, _, _, ema, step = load(folder, "last")
    return step, [np.asarray(leaf) for leaf in jax.tree.leaves(ema)]


def test_killed_three_times_ends_as_the_undisturbed_run(place):
    finish(launch(place, "calm"))
    folder = place / "rough" / "checkpoints"
    rng = random.Random(0)  # where the two other kills fall; exactness must not depend on it
    first = 10 * rng.randint(1, 3)
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

    said = finish(launch(place, "rough"))
    resumed = int(said.split("resuming at step ")[1].split()[0])
    assert 0 < resumed < STEPS, "there was something left to do"
    (step_calm, calm), (step_rough, rough) = parameters(place / "calm"), parameters(place / "rough")
    assert step_calm == step_rough == STEPS and not unfinished(folder)
    for a, b in zip(calm, rough):
        np.testing.assert_array_equal(a, b)
    assert max(np.abs(a).max() for a in calm) > 0

    logs = [[json.loads(line) for line in (place / n / "log.jsonl").read_text().splitlines()] for n in ("calm", "rough")]
    key = lambda record: (record["kind"], record["step"])
    assert list(map(key, logs[0])) == list(map(key, logs[1])), "no line lost, none twice"
    losses = [[record["mean"] for record in log if record["kind"] == "held_out"] for log in logs]
    assert losses[0] == losses[1]


def test_more_steps_and_an_interrupt(place, capfd):
    """Needs the run "calm" of the test above."""
    from experiments import train

    one_process = [option for option in OPTIONS if option not in ("--devices", "2")] + [
        "--classes", "2", "--patch", "2", "--data", str(place / "data.npz"), "--out", str(place / "calm")]
    assert train.main(one_process) == 0, "other devices than the run had"
    assert f"already has {STEPS} steps" in capfd.readouterr().err
    pictures = sorted(p.name for p in (place / "calm").glob("*.png"))
    assert pictures == ["samples_0000060.png", "samples_0000120.png"]

    folder = place / "calm" / "checkpoints"
    process = launch(place, "calm", "--steps", "100000")
    while process.poll() is None and last_step(folder) <= STEPS:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    said = finish(process)
    saved = int(said.split("saved step ")[1].split()[0])
    assert f"resuming at step {STEPS} of 100000" in said and "the same command goes on" in said
    assert STEPS < saved < 100000 and last_step(folder) == saved
