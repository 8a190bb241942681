"""Every published number against the official configuration recorded beside the runs; where a run has none, against the
paper's own (said in the line)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import load

import diffjax as dj
from diffjax import registry

O = dj.operators
SHAPE = (8, 8, 3)
DDPM_LINEAR = dj.schedules.discrete(dj.schedules.linear_betas(1000))
DENOISE = dj.denoisers.from_eps(lambda x, i: 0 * x, None, DDPM_LINEAR)
OPERATORS = {
    "inpainting": O.Mask(jnp.ones(SHAPE)),
    "deblurring": O.Blur(O.gaussian_kernel(5, 1.0)),
    "super-resolution": O.Resize(4),
}


def published(name, kind="inpainting", noise_std=0.0):
    A = OPERATORS[kind]
    return registry.get(name).published(DENOISE, dj.Measurement(A(jnp.zeros(SHAPE)), A, noise_std))


@pytest.fixture
def recorded(request):
    return lambda name: load(request.config.rootpath / "tests" / "golden" / f"{name}.npz")[1]


def rows(table):
    """(first t, last s, rows, jumps)"""
    return float(table.t[0]), float(table.r[-1]), len(table), int((table.r > table.s).sum())


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("copaint", "copaint_tt_default250"),
        ("copaint-tt", "copaint_tt_default250"),
        ("copaint-fast", "copaint_fast_celebahq"),
        ("copaint-fast-imagenet", "copaint_fast_imagenet"),
        ("copaint-imagenet", "dps_superres4"),  # another method's run, with the whole ImageNet configuration beside it
        ("copaint-tt-imagenet", "dps_superres4"),
    ],
)
def test_copaint(recorded, name, file):
    official = recorded(f"inpainting/{file}")["config"]["optimize_xt"]
    A = OPERATORS["inpainting"]
    method, kernel, _ = dj.methods.copaint.published(DENOISE, dj.Measurement(A(jnp.zeros(SHAPE)), A), variant=name)
    ours = dict(num_iteration_optimize_xt=method.iterations, lr_xt=method.lr, lr_xt_decay=method.lr_decay,
                use_smart_lr_xt_decay=method.smart, use_adaptive_lr_xt=method.adaptive, coef_xt_reg=method.reg,
                coef_xt_reg_decay=method.reg_decay, mid_interval_num=method.estimate_steps,
                filter_xT=method.candidates > 1)  # fmt: skip
    assert ours == {key: official[key] for key in ours}
    assert kernel.eta == 0 and isinstance(kernel, dj.kernels.DDIM)


def test_copaint_walks(recorded):
    official = recorded("inpainting/copaint_tt_default250")["config"]["ddim"]["schedule_params"]
    walk = dj.methods.copaint.walk
    plain, travelling = walk("copaint", DDPM_LINEAR), walk("copaint-tt", DDPM_LINEAR)
    levels = dj.timetables.space(1000, official["ddpm_num_steps"]) + 1
    np.testing.assert_array_equal(np.append(plain.t, plain.r[-1])[::-1], levels)
    climbs = travelling.r > travelling.s
    place = {t: n for n, t in enumerate(levels)}
    lengths = {place[r] - place[s] for s, r in zip(travelling.s[climbs], travelling.r[climbs])}
    counts = np.unique(travelling.s[climbs], return_counts=True)[1]
    assert lengths == {official["jump_length"]} and set(counts + 1) == {official["jump_n_sample"]}
    fast = walk("copaint-fast", DDPM_LINEAR)  # 100 of the 250 levels: CoPaint's README
    assert len(fast) == 99 and set(fast.t) <= set(levels) and len(walk("copaint-fast", DDPM_LINEAR, 10)) == 9


def test_repaint(recorded):
    official = recorded("inpainting/repaint_default250")
    method, kernel, table = published("repaint")
    jump = official["schedule_jump_params"]
    assert len(table) == official["nfe_total"] == 2410 and method.order == "official"
    np.testing.assert_array_equal(np.unique(table.t), dj.timetables.space(1000, jump["t_T"]) + 1)
    climbs = table.r > table.s
    assert set(np.unique(table.s[climbs], return_counts=True)[1] + 1) == {jump["jump_n_sample"]}
    assert isinstance(kernel, dj.kernels.DDPM) and method.measurement.noise_std == 0


@pytest.mark.parametrize(
    ("kind", "file"),
    [("deblurring", "dps_blur_ddim"), ("inpainting", "dps_inpaint_random"), ("super-resolution", "dps_sr4")],
)
def test_dps(recorded, kind, file):
    method, kernel, table = published("dps", kind)
    assert method.scale == recorded(f"plug_and_play/{file}")["scale"]
    assert method.loss == "norm" and isinstance(kernel, dj.kernels.DDPM) and rows(table) == (1000, 0, 1000, 0)


def test_dps_for_phase_retrieval_and_mcg(recorded):
    assert dj.methods.dps.SCALES["phase retrieval"] == recorded("plug_and_play/dps_phase_f32")["scale"]
    method, kernel, table = published("mcg")
    assert method.scale == recorded("plug_and_play/mcg_inpaint_MCG")["scale"]
    assert isinstance(kernel, dj.kernels.DDPM) and rows(table) == (1000, 0, 1000, 0)


@pytest.mark.parametrize(
    ("kind", "file", "calls"),
    [
        ("deblurring", "diffpir_deblur20_quad", 100),
        ("inpainting", "diffpir_main_inpaint20_quad", 20),
        ("super-resolution", "diffpir_sisr_blur20_k9", 100),
    ],
)
def test_diffpir(recorded, kind, file, calls):
    """The official lambda is four times ours: its noise is in [0, 1], its sigma / alpha in [-1, 1]."""
    official = recorded(f"plug_and_play/{file}")["hyper"]
    method, kernel, table = published("diffpir", kind)
    assert 4 * method.lam == official["lambda_"] and kernel.zeta == official["zeta"]
    assert method.guidance == official["guidance_scale"] and method.prior_std == np.inf and method.data == "prox"
    assert len(table) == calls and table.t[0] == official["t_start"] + 1


@pytest.mark.parametrize(
    ("name", "file"), [("ddrm", "ddrm_inp_s005"), ("ddnm", "ddnm_svd_deblurg"), ("ddnm+", "ddnmplus_deblurg")]
)
def test_spectral(recorded, name, file):
    official = recorded(f"plug_and_play/{file}")
    method, kernel, table = published(name)
    if name == "ddrm":
        assert (method.eta, method.eta_b) == (official["eta"], official["etaB"])
        assert len(table) == official["timesteps"] == 20
    elif name == "ddnm":
        assert kernel.zeta == pytest.approx(official["eta"] ** 2) and method.keep_eps and method.travel == "x0"
    else:
        assert method.eta == official["eta"] and method.form == "svd"
    assert name == "ddrm" or len(table) == 100  # the paper's T
    assert set(-np.diff(table.t)) == {1000 // len(table)}


def test_dpir(request):
    """Its levels and rho as the official helper computes them for noise of 7.65 grey levels. That one has lambda 1 / 3 there;
    the paper, and we, 0.23."""
    arrays, _ = load(request.config.rootpath / "tests" / "golden" / "plug_and_play" / "ops_diffpir_tables.npz")
    noise_std = 2 * 7.65 / 255
    method, _, table = published("dpir", noise_std=noise_std)
    ratio = DDPM_LINEAR.sigma(table.t) / DDPM_LINEAR.alpha(table.t)
    np.testing.assert_allclose(ratio / 2, arrays["dpir_sigma_8"], rtol=1e-3)
    np.testing.assert_allclose(noise_std**2 / ratio**2 / 3, arrays["dpir_rho_8"], rtol=3e-3)
    assert method.lam == 0.23


@pytest.mark.parametrize(
    ("name", "numbers", "kernel", "count"),
    [
        ("score-sde", {"strength": 1.0}, {}, 1000),  # Song et al. 2021, appendix I.2: N = 1000
        ("blended", {"bounds": (-1.0, 1.0)}, {"eta": 0.0}, 250),  # CoPaint's tables: 250 levels
        ("resampling", {"scale": 100.0, "particles": 10}, {"eta": 0.0}, 250),  # the same: 10 samples
        ("pigdm", {"prior_std": 1.0, "scale": 1.0, "weight": "adaptive"}, {"eta": 1.0}, 100),  # Song et al. 2023, section 5
        ("red-diff", {"weight": 0.25, "lr": 0.1}, {}, 1000),  # NVlabs' configuration
    ],
)
def test_papers_without_a_recorded_configuration(name, numbers, kernel, count):
    method, moves, table = published(name)
    assert {key: getattr(method, key) for key in numbers} == numbers
    assert {key: getattr(moves, key) for key in kernel} == kernel and len(table) == count


def test_numbers_inside():
    assert dj.methods.red_diff.BETAS == (0.9, 0.99)  # Adam's, in NVlabs' configuration
    lowest = dj.timetables.dpir(DDPM_LINEAR, 0.0).t[-1]  # 2.55 grey levels, and images twice as wide
    np.testing.assert_allclose(DDPM_LINEAR.sigma(lowest) / DDPM_LINEAR.alpha(lowest), 2 * 2.55 / 255, rtol=1e-6)
    assert len(published("ddnm")[2]) == len(dj.timetables.respaced(DDPM_LINEAR, 100)) == 100  # simplified DDNM's --config


def test_settings_reach_the_method_and_the_kernel():
    """What ``build`` takes by name changes what it says: of every method, one by one."""
    A = OPERATORS["deblurring"]
    m = dj.Measurement(A(jnp.zeros(SHAPE)), A, 0.1)
    masked = dj.Measurement(jnp.zeros(SHAPE), OPERATORS["inpainting"], 0.1)
    for entry in registry.METHODS.values():
        if entry.whole is not None:  # its settings are of the optimiser around the walk
            continue
        given = (
            masked
            if "mask" in entry.method.requires
            else dj.replace(m, noise_std=0.0)
            if entry.method.noise == "refused"
            else m
        )
        leaves = lambda setup: jax.tree.leaves((setup.method, setup.kernel))
        static = lambda setup: [
            getattr(thing, f.name)
            for thing in setup[:2]
            for f in dataclasses.fields(thing)
            if f.metadata.get("static") and f.name != "quiet"
        ]
        plain = entry.build(DENOISE, given, 6)
        for name in entry.settings():
            if name in (
                "measurement",
                "noise_floor",
                "guess",
                "tolerance",
                "bounds",
                "smart",
                "adaptive",
                "exact",
                "keep",
                "data",
            ):
                continue
            value = (
                7 if name in ("particles", "every", "iterations", "max_reductions", "estimate_steps", "candidates") else 0.4375
            )
            changed = entry.build(DENOISE, given, 6, **{name: value})
            same = all(np.array_equal(a, b) for a, b in zip(leaves(plain), leaves(changed)))
            assert not same or static(plain) != static(changed), (entry.name, name)
