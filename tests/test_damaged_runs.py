"""Folders of training runs that were damaged: the newest whole checkpoint is used and said; a failed save is one line."""

import errno
import json
import logging
import resource
import shutil
import signal
import sys
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import zoo
from diffjax.training import checkpoints, state


def items(n):
    """Of a network that knows its step; large enough that a changed byte hits a number."""
    noise = np.random.default_rng(n).standard_normal((40, 50)).astype(np.float32)
    return state.to_items(state.init_state({"w": jnp.asarray(noise), "n": jnp.full(3, float(n))}, state.adam(0.1)))


SHAPES = checkpoints.abstract(jax.eval_shape(lambda: items(0)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with checkpoints.Checkpoints(folder, keep=3) as store:
        for n in (10, 20, 30):
            store.save(n, items(n), 1 / n)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "checkpoints")


def files_of(step, item):
    return [p for p in (step / item).rglob("*") if p.is_file() and "d" in p.parts[-2:] and p.stat().st_size > 100]


def spoil_bytes(step):
    for file in files_of(step, "ema") + files_of(step, "state"):
        data = bytearray(file.read_bytes())
        at = len(data) // 2
        data[at : at + 40] = bytes(255 - b for b in data[at : at + 40])
        file.write_bytes(data)


DAMAGE = {
    "empty": lambda step: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in step.iterdir()],
    "no item": lambda step: shutil.rmtree(step / "ema"),
    "no metadata": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
    "no metadata of an item": lambda step: (step / "ema" / "_METADATA").unlink(),
    "cut": lambda step: [f.write_bytes(f.read_bytes()[:60]) for f in files_of(step, "state")],
    "other bytes": spoil_bytes,
    "metrics": lambda step: (step / "metrics" / "metrics").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_the_newest_whole_step_is_used(damage, folder):
    damage(folder / "30")
    said = []
    with checkpoints.Checkpoints(folder, keep=3) as store:
        kept, step = store.resume(SHAPES, said.append)
        assert step == 20
        jax.tree.map(np.testing.assert_array_equal, kept, items(20))
        assert len(said) == 1 and said[0].isprintable() and f"{folder}/30" in said[0] and "put aside in" in said[0]
        store.save(30, items(31), 0.01)  # the run goes on over the same steps
    with checkpoints.Checkpoints(folder, read_only=True) as store:
        assert (store.last(), store.best()) == (30, 30)
        np.testing.assert_array_equal(store.read("ema", 30)[0]["net"]["n"], np.full(3, 31.0))
    assert len(list(folder.parent.glob("damaged-30-*/30"))) == 1, "nothing is deleted"


def test_whole_steps_are_read_and_another_network_is_no_damage(folder):
    with checkpoints.Checkpoints(folder, read_only=True) as store:
        assert store.steps() == [10, 20, 30] and store.best() == 30
        kept, step = store.resume(SHAPES, pytest.fail)
        assert step == 30
        jax.tree.map(np.testing.assert_array_equal, kept, items(30))
        other = checkpoints.abstract(
            jax.eval_shape(lambda: state.to_items(state.init_state({"w": jnp.ones(2)}, state.adam(0.1))))
        )
        with pytest.raises(ValueError, match="of another network or optimiser: ema/net/w"):
            store.resume(other, pytest.fail)
    assert (folder / "30").is_dir()


def test_a_prior_of_a_damaged_run(folder):
    """The best step cannot be read: the newest other one is used, aloud; without any, one line."""
    spoil_bytes(folder / "30")
    with pytest.warns(zoo.Assumed, match=r"checkpoints/30 is damaged.*: step 20 is used"):
        params, step = zoo.prior.read_run(folder.parent)
    assert step == 20 and float(params["n"][0]) == 20
    for n in (10, 20, 30):
        (folder / str(n) / "_CHECKPOINT_METADATA").unlink()
    with pytest.raises(ValueError, match="no whole checkpoint, 10, 20, 30 is damaged"):
        zoo.prior.read_run(folder.parent)


def test_a_failed_save_is_one_line(folder, capfd, monkeypatch):
    """As on a full disk: no file may grow beyond 1 kB. What was saved before stays, and no thread of Orbax complains."""
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with checkpoints.Checkpoints(folder, keep=3) as store:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
            with pytest.raises(checkpoints.SaveError, match="checkpoints/40 cannot be saved") as error:
                store.save(40, items(40), 0.001)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert not complaints and str(error.value).isprintable() and len(capfd.readouterr().err.splitlines()) < 5
    with checkpoints.Checkpoints(folder, read_only=True) as store:
        assert store.last() == 30


def test_nothing_of_a_failed_save_comes_later(folder, caplog):
    """As on a small disk: one write fails, and what a thread of Orbax and a forgotten future say afterwards is not shown. What
    is of something else is."""
    later = threading.Event()

    def late():
        later.wait(10)
        logging.getLogger("absl").error("[thread=x] _SignalingThread.run() raised an exception: %s", "full")
        logging.getLogger("asyncio").error("_GatheringFuture exception was never retrieved")
        logging.getLogger("absl").error("of something else")

    thread = threading.Thread(target=late)

    def save(*args, **options):
        thread.start()
        raise OSError(errno.ENOSPC, "No space left on device")

    with checkpoints.Checkpoints(folder) as store:
        store.manager = types.SimpleNamespace(save=save, close=lambda: None)
        with pytest.raises(checkpoints.SaveError, match=r"checkpoints/40 cannot be saved \(No space left on device\)"):
            store.save(40, items(40), 0.001)
    later.set()
    thread.join()
    assert [record.getMessage() for record in caplog.records] == ["of something else"]


def test_a_folder_that_cannot_be_written_is_said_first(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(ValueError, match="checkpoints cannot be written"):
        checkpoints.Checkpoints(tmp_path / "checkpoints")


@pytest.mark.parametrize("change, wanted", [
    (lambda c: None, "cannot be read"), (lambda c: [c], "no JSON object"),
    (lambda c: c | {"later": 1}, "unknown fields later"),
    (lambda c: {k: v for k, v in c.items() if k != "name"}, "lacks name"), (lambda c: c | {"width": "8"}, "width '8' is not"),
])  # fmt: skip
def test_the_configuration_of_a_run_is_read_in_one_place(change, wanted, tmp_path):
    import dataclasses

    from diffjax.cli import config

    written = change(dataclasses.asdict(config.TrainConfig("mine", "data")))
    (tmp_path / "config.json").write_text("" if written is None else json.dumps(written))
    with pytest.raises(ValueError, match=wanted) as error:
        config.read(tmp_path / "config.json")
    assert str(tmp_path / "config.json") in str(error.value) and str(error.value).isprintable()
