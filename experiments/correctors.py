"""A corrector or more rows? ``python -m experiments.correctors``: predictor-corrector on a real network.

The prior fashion32-ve, of the kind Song et al. 2021 had correctors for. Each predictor alone and with one step of Langevin
(signal-to-noise ratio 0.16) a row, at equal network calls: a corrected walk has half the rows. Log-SNR grid.

frechet   distance of the samples to the Fashion-MNIST test images, in the features of the bundled classifier: less is better.
          All rows draw equally many samples, with labels in turn; their number biases every row alike
accuracy  share of the samples that the classifier gives their label
Writes correctors.json.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

import diffjax as dj
from diffjax import metrics
from diffjax.cli import quality
from diffjax.training import data

from .tools import provenance, records
from .tools.study import Parser, command, library_errors, run, use_cores, whole

K = dj.kernels
PREDICTORS = {"reverse diffusion": K.ReverseDiffusion(), "ancestral (DDPM)": K.DDPM(), "2M": K.DPMSolverPP2M()}
LANGEVIN = K.Langevin(snr=0.16)


def main(argv=None) -> int:
    use_cores()
    p = Parser("experiments.correctors", __doc__)
    p.add_argument("--prior", default="fashion32-ve")
    p.add_argument("--data", help="Fashion-MNIST (default: the path in the prior's card)")
    p.add_argument("--samples", type=whole(100), default=400)
    p.add_argument("--calls", type=whole(4), nargs="+", default=[20, 100])
    p.add_argument("--out", **provenance.OUT)
    options = p.parse(argv)
    with library_errors():
        prior = dj.zoo.load(options.prior)
        images = data.load(quality.source(prior, options.data), size=32, channels=1, classes=10)
    begin, rows = time.perf_counter(), []
    classify = quality.classifier()
    truth, _ = classify(images.test)
    labels = np.arange(options.samples) % 10
    how = argparse.Namespace(batch=100, seed=0)
    for calls in options.calls:
        for name, predictor in PREDICTORS.items():
            for corrected in (False, True):
                kernel = K.PredictorCorrector(predictor=predictor, corrector=LANGEVIN) if corrected else predictor
                table = dj.timetables.log_snr(prior.schedule, calls // kernel.calls)
                features, said = classify(quality.sampler(prior, kernel, table, how, guided=False)(labels))
                rows.append({
                    "predictor": name, "corrector": "Langevin" if corrected else "none", "calls": calls, "rows": len(table),
                    "frechet": round(metrics.frechet_distance(features, truth), 2),
                    "accuracy": round(float(np.mean(said == labels)), 3),
                })  # fmt: skip
                print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    print(records.write("correctors", command("experiments.correctors", argv), rows, options.out, samples=options.samples,
                        prior=prior.card["signature"], seconds=round(time.perf_counter() - begin, 1)))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
