"""Every recorded loss of the score-SDE code: continuous and discrete, likelihood weighting, both reductions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import check, load

import diffjax as dj
from diffjax.denoisers import FromNoise
from diffjax.training import losses

CONTINUOUS = {"ve": dj.schedules.VE, "vp": dj.schedules.VP, "subvp": dj.schedules.SubVP}
REDUCTION = {"rm0": "half_sum", "rm1": "mean"}


def table(sde, par, N):
    if sde == "vp":
        return dj.schedules.discrete(np.linspace(par["beta_min"] / N, par["beta_max"] / N, N))
    rising = np.exp(np.linspace(np.log(par["sigma_min"]), np.log(par["sigma_max"]), N))
    return dj.schedules.Discrete(np.ones(N + 1), np.concatenate([[0.0], rising]))


def eps_of(mixture, schedule, x, t):
    """-sigma times the score of the noised mixture of diagonal Gaussians."""
    mu, var, log_w = mixture
    a, s = schedule.alpha(t), schedule.sigma(t)
    score = jax.grad(lambda x: jax.nn.logsumexp(
        log_w + jnp.sum(jax.scipy.stats.norm.logpdf(x, a * mu, jnp.sqrt(a**2 * var + s**2)), (1, 2, 3))))  # fmt: skip
    return -s * score(x)


def recorded(run, meta):
    """(name, loss of one image (x, t, z), its times, its draws)"""
    mixture = tuple(jnp.asarray(run[name]) for name in ("gmm_mu", "gmm_var", "gmm_logw"))
    for name, _ in meta["cases"]:
        kind, sde, *flags = name.split("_")
        par = meta["par"][sde]
        reduction = REDUCTION[flags[-1]]
        if kind == "cont":
            schedule = CONTINUOUS[sde](**par)
            t, z = run["u_cont"].astype(float) * (1 - meta["eps"]) + meta["eps"], run["z_cont"]
            weighted = {"likelihood": flags[0] == "lw1"}
        else:
            schedule = table(sde, par, meta["N"])
            labels, z, weighted = run[f"labels_disc_{sde}"], run[f"z_disc_{sde}"], {}
            t = meta["N"] - labels.astype(float) if sde == "ve" else labels + 1.0

        def net(x, i, schedule=schedule, sde=sde, kind=kind):
            """0.9 x what this kind of network should give + 0.1 sin 2x, told the official label"""
            if kind == "cont":
                at = schedule.time(-2 * np.log(i)) if sde == "ve" else i / 999
            else:
                at = meta["N"] - i if sde == "ve" else i + 1
            eps = eps_of(mixture, schedule, x, at)
            return 0.9 * (-eps / schedule.sigma(at) if sde == "ve" else eps) + 0.1 * jnp.sin(2 * x)

        if kind == "disc" and sde == "vp":
            one = lambda x, t, z, s=schedule, r=reduction, net=net: losses.eps_loss(net, s, x, t, z, reduction=r)
        else:  # continuous VP networks give eps: as a score
            how = {"reduction": reduction, "time": FromNoise() if kind == "disc" else None, **weighted}

            def one(x, t, z, s=schedule, how=how, net=net, exploding=sde == "ve"):
                score = net if exploding else lambda x, i: -net(x, i) / s.sigma(t)
                return losses.score_loss(score, s, x, t, z, **how)

        yield name, one, t, z


@pytest.mark.golden("score_sde", "sde_losses")
def test_losses(golden_file):
    run, meta = load(golden_file)
    images = lambda a: np.moveaxis(a, 1, -1).astype(float)
    channels_last = {n: images(run[n]) for n in ("gmm_mu", "gmm_var", "x")}
    with jax.enable_x64(True):
        seen = 0
        for name, one, t, z in recorded(run | channels_last, meta):
            draws = zip(channels_last["x"], t, images(z))
            values = [one(jnp.asarray(x), np.float64(at), jnp.asarray(noise))[0] for x, at, noise in draws]
            check(f"{golden_file.stem} {name}", np.mean(values), run[name], 1e-9)
            seen += 1
        assert seen == len(meta["cases"]) > 0
