"""Some hundred changed files of every kind: arrays, or one line; no traceback, no hang, memory by the file's size.

``python -m experiments.fuzz`` makes as many as one likes.
"""

import numpy as np
import pytest

from diffjax.convert import files
from experiments import fuzz, fuzz_images


@pytest.fixture(scope="module")
def kinds():
    return fuzz.wholes()


def test_whole_files_are_read(kinds, tmp_path):
    """What is changed below is whole before: all formats give the same arrays."""
    wanted = dict(list(fuzz.state_dict().items())[:6])
    for name, data in kinds.items():
        (tmp_path / name).write_bytes(data)
        got = files.read(tmp_path / name)
        assert got.keys() == wanted.keys(), name
        for key, a in wanted.items():
            np.testing.assert_array_equal(got[key], a, err_msg=f"{name}: {key}")


@pytest.mark.parametrize("part", range(3))
def test_changed_checkpoints(part, kinds, tmp_path):
    for n in range(100 * part, 100 * (part + 1)):
        name, _, said = fuzz.one_file(tmp_path, kinds, np.random.default_rng([1, n]))
        assert not said, f"seed [1, {n}], {name}: {said}"


def test_changed_pictures(tmp_path):
    """Whole ones of every format first: they are read."""
    pictures = fuzz_images.wholes()
    for name, data in pictures.items():
        (tmp_path / name).write_bytes(data)
        fuzz_images.pictures.read(tmp_path / name)
    for n in range(300):
        name, _, said = fuzz.one_image(tmp_path, pictures, np.random.default_rng([4, n]))
        assert not said, f"seed [4, {n}], {name}: {said}"


def test_changed_descriptions(tmp_path):
    for n in range(200):
        name, data, said = fuzz.one_json(tmp_path, np.random.default_rng([2, n]))
        assert not said, f"seed [2, {n}], {name} {data[:500]}: {said}"


def test_changed_priors(tmp_path):
    state = fuzz.state_dict()
    for n in range(8):
        name, data, said = fuzz.one_prior(tmp_path, state, np.random.default_rng([3, n]))
        assert not said, f"seed [3, {n}], {name} {data[:500]}: {said}"


@pytest.mark.parametrize("reader, said", [
    (lambda: (_ for _ in ()).throw(TypeError("x")), "TypeError"),
    (lambda: (_ for _ in ()).throw(ValueError("a\nb")), "no printable line"),
    (lambda: np.ones(2**24, np.float64).sum(), "MB for a file of 3 bytes"),
])  # fmt: skip
def test_the_fuzzer_sees_what_is_broken(reader, said, monkeypatch):
    monkeypatch.setattr(fuzz, "BYTES", 2**26)
    assert said in fuzz.broken(reader, 3)
