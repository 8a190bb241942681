"""Volumes for super-resolution: what is trained on and tested on, patches, and the network with its ways to predict.

Four degradations, each along every axis when training: in-plane x2, x4 (k-space crop), through-plane x2, x4 (thick slices,
boxes). A network is told one cut of the volume enlarged by cubic interpolation; which degradation it is, it sees from that.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax.nets import LocalUNet
from diffjax.training import losses
from diffjax.volumes import IN_PLANE, THROUGH_PLANE, Coarse, cuts_of, read

from .study import UserError

DEGRADATIONS = [(plane, factor) for plane in (IN_PLANE, THROUGH_PLANE) for factor in (2, 4)]
T, BETAS = 100, (1e-4, 0.12)
SIZE = 32
HELD_OUT = 4  # of the training volumes, for the loss that is watched
NETWORKS = {"base": None, "sr3": None, "regression": None, "partdiff50": 50, "partdiff25": 25}  # name: K, as they are trained
STEPS = {"base": 600}  # of training, 3000 of the others
HEAD = "lesjak_cs_patient07_T1_brain_mni1mm.nii.gz"  # trained on beside the hippocampi, for edges of heads and black air
HEAD_SHARE = 0.25


def schedule():
    return dj.schedules.discrete(np.linspace(*BETAS, T))


def network():
    return LocalUNet(width=32, multipliers=(1, 2))


def hippocampi(folder, split) -> dict[str, np.ndarray]:
    """{file name: (X, Y, Z) float32 in [-1, 1]}, cropped at the ends to multiples of 4, of "train" or "test".

    The files hold 0..255, onto which the 0.5 and 99.8 percentiles of each volume were mapped.
    """
    folder = Path(folder) / "hippocampus"
    try:
        with open(folder / "index.csv") as file:
            names = [row["file"] for row in csv.DictReader(file) if row["split"] == split]
    except OSError as error:
        raise UserError(f"{folder} has no hippocampi ({error.strerror}): give --data, a folder with hippocampus/index.csv "
                        "and {train,test}/*.nii.gz") from None  # fmt: skip
    return {name: cropped(read(folder / split / name).data / 127.5 - 1) for name in names}


def cropped(x):
    return x[tuple(slice(n // 4 * 4) for n in x.shape)].astype(np.float32)


@dataclass(frozen=True)
class Pair:
    """A stack of cuts (n, rows, columns), fine and enlarged from coarse."""

    fine: np.ndarray
    enlarged: np.ndarray


def pairs(volume) -> list[Pair]:
    found = []
    for plane, factor in DEGRADATIONS:
        for axis in range(3):
            coarse = Coarse(plane, factor, axis)
            enlarged = coarse.enlarge(coarse(volume))
            found += [Pair(at_least(cuts.of(volume)), at_least(cuts.of(enlarged))) for cuts in cuts_of(coarse)]
    return found


def at_least(stack, size=SIZE):
    """Sides of at least ``size``, mirrored."""
    pads = [(0, 0), *((0, max(size - n, 0)) for n in stack.shape[1:])]
    return np.pad(stack, pads, "symmetric") if any(after for _, after in pads) else stack


class Patches:
    """``batch(step)`` -> (fine, enlarged), (batch, 32, 32, 1) each: any volume, degradation, axis, cut and place, mirrored at
    random; every other one with another contrast and brightness, as whole heads have beside crops of a brain."""

    def __init__(self, volumes, head, batch, seed=0):
        self.sets, self.batch, self.seed = [pairs(v) for v in volumes], batch, seed
        self.head = None if head is None else pairs(head)

    def __call__(self, step):
        rng = np.random.default_rng((self.seed, step))
        out = np.empty((2, self.batch, SIZE, SIZE, 1), np.float32)
        for k in range(self.batch):
            head = self.head is not None and rng.random() < HEAD_SHARE
            options = self.head if head else self.sets[rng.integers(len(self.sets))]
            plane, factor, axis = rng.integers(2), rng.integers(2), rng.integers(3)
            # in-plane: 3 stacks for each factor; through-plane: 6
            at = factor * 3 + axis if plane == 0 else 6 + factor * 6 + axis * 2 + rng.integers(2)
            pair = options[at]
            for _ in range(4):  # air alone teaches little
                n = rng.integers(len(pair.fine))
                i, j = (rng.integers(side - SIZE + 1) for side in pair.fine.shape[1:])
                cut = (n, slice(i, i + SIZE), slice(j, j + SIZE))
                if pair.fine[cut].std() > 0.02:
                    break
            flips = tuple(slice(None, None, step) for step in rng.choice([-1, 1], 2))
            patch = np.stack([pair.fine[cut][flips], pair.enlarged[cut][flips]])
            if rng.random() < 0.5:
                gain = rng.uniform(0.3, 1.1)
                patch = gain * (patch + 1) - 1 + rng.uniform(0, max(1.9 - 2 * gain, 0.0)) * (rng.random() < 0.5)
            out[:, k, ..., 0] = patch
        return out


# --- what a network is trained for, one patch -------------------------------------------------------------------------


def loss_of(name, net):
    """f(params, key, fine, enlarged) -> mean squared error, for one patch (32, 32, 1)."""
    K, table = NETWORKS[name], schedule()
    if name == "regression":
        return lambda params, key, fine, enlarged: jnp.mean((regress(net, params, enlarged) - fine) ** 2)

    def loss(params, key, fine, enlarged):
        key_t, key_noise = jax.random.split(key)
        t = (1 - jax.random.uniform(key_t)) * (K or T)  # (0, K]: continuous noise levels
        if K:  # PartDiff's latent alignment: the image slides to the enlarged one as t rises to K
            share = (K - t) / K
            fine = share * fine + (1 - share) * enlarged
        apply = lambda x, level: net.apply(params, x, level, enlarged)
        noise = jax.random.normal(key_noise, fine.shape)
        return losses.eps_loss(apply, table, fine, t, noise, time=dj.denoisers.NoiseLevel())[0]

    return loss


def regress(net, params, enlarged):
    """The regression network: what is added to the enlarged image, at no noise and no x_t."""
    return enlarged + net.apply(params, jnp.zeros_like(enlarged), jnp.zeros(enlarged.shape[:-3]), enlarged)


def card(name, step, params) -> dict:
    """Of an exported network: what it is, what it was trained on, under which licences."""
    net = network()
    return {
        "name": f"mri_sr, {name}",
        "licence": "CC BY-SA 4.0, as most of the volumes it was trained on",
        "network": "diffjax.nets.LocalUNet: convolutions alone, told sqrt(abar) and the cut enlarged; predicts the noise",
        "width": net.width, "multipliers": list(net.multipliers), "betas": list(BETAS), "T": T, "K": NETWORKS[name],
        "parameters": int(sum(np.size(a) for a in jax.tree.leaves(params))),
        "weights": "exponential average of the parameters, float16",
        "degradations": "x2 and x4; in-plane: crop of k-space; through-plane: box-shaped thick slices; enlarged by cubic "
                        "interpolation",
        "intensities": "percentiles 0.5 and 99.8 of the volume are -1 and 1",
        "data": [
            {"name": f"{60 - HELD_OUT} hippocampi, Medical Segmentation Decathlon, Task04 (T1-weighted, 1 mm)",
             "origin": "GitHub udacity/nd320-c3-3d-imaging-starter, commit 895fee683624aafe2033521f4d9b6d99accd66d5; images "
                       "from Vanderbilt University Medical Center; A. L. Simpson et al., arXiv:1902.09063; M. Antonelli et "
                       "al., Nature Communications 13, 4128 (2022)",
             "licence": "CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/)",
             "changes": "grey values mapped to 8 bits by percentiles"},
            {"name": "one T1-weighted brain, patient07 of the MS data set of Lesjak et al., in MNI space at 1 mm",
             "origin": "Z. Lesjak, F. Pernus, B. Likar, Z. Spiclin, Neuroinformatics 2017, doi 10.1007/s12021-017-9348-7; "
                       "GitHub muschellij2/open_ms_data, commit 65704901f60650824565aa5a4818611aa89716f4",
             "licence": "CC BY", "changes": "cropped, mapped to 8 bits"},
        ],
        "training": {"command": "python -m experiments.mri_sr train base; python -m experiments.mri_sr train "
                                f"{name} --steps {step}", "checkpoint": int(step)},
        "not for": "diagnosis: what is added is what such brains look like, not what was measured",
    }  # fmt: skip
