"""What a scheduler_config.json of diffusers says of the process a network was trained on: by allow lists.

A class that is not listed is another process, and a key that is not listed may change its meaning: both are refused, aloud.
Keys of sampling alone (its grid, order, thresholds) are let pass: here the timetable and the kernel decide those.

Field names and defaults: diffusers 0.1 to 0.42.
"""

from __future__ import annotations

from collections.abc import Mapping

from .. import schedules
from ..base import nearest
from ..wording import printable
from .parametrisations import Preconditioned, UnitRange

BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}  # their names: ours
LOSSES = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
MOST_T = 100_000  # levels of a table: 4000 is the most that was published

# processes on a table of betas, whose network is told the index of the level
TABLES = """
DDPMScheduler DDIMScheduler DDPMParallelScheduler DDIMParallelScheduler DDIMInverseScheduler PNDMScheduler
RePaintScheduler DPMSolverMultistepScheduler DPMSolverSinglestepScheduler DPMSolverMultistepInverseScheduler
DPMSolverSDEScheduler DEISMultistepScheduler UniPCMultistepScheduler EulerDiscreteScheduler
EulerAncestralDiscreteScheduler HeunDiscreteScheduler KDPM2DiscreteScheduler KDPM2AncestralDiscreteScheduler
LMSDiscreteScheduler SASolverScheduler
""".split()
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
# x = x0 + sigma eps, and the network is told of sigma. (smallest, largest sigma) where the file does not say
EDMS = {"EDMEulerScheduler": (0.002, 80.0), "EDMDPMSolverMultistepScheduler": (0.002, 80.0)}
VES = {"ScoreSdeVeScheduler": (0.01, 1348.0), "KarrasVeScheduler": (0.02, 100.0)}
REFUSED = {
    "CMStochasticIterativeScheduler": "a consistency model, which goes to the image in one step",
    "LCMScheduler": "a latent consistency model", "TCDScheduler": "a latent consistency model",
    "ScoreSdeVpScheduler": "the score-SDE code's process in continuous time; convert.score_sde reads the original checkpoint",
    "VQDiffusionScheduler": "a process on discrete tokens", "AmusedScheduler": "a process on discrete tokens",
    "UnCLIPScheduler": "unCLIP's process, which has a learned variance of its own",
}  # fmt: skip
KEYS = {"beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr", "num_train_timesteps",
        "prediction_type", "predict_epsilon"}  # fmt: skip
SAMPLING = set(
    """clip_sample clip_sample_range variance_type thresholding dynamic_thresholding_ratio sample_max_value
timestep_spacing steps_offset set_alpha_to_one set_alpha_to_zero skip_prk_steps solver_order solver_type algorithm_type
lower_order_final euler_at_final use_karras_sigmas use_exponential_sigmas use_beta_sigmas use_lu_lambdas final_sigmas_type
lambda_min_clipped predict_x0 disable_corrector solver_p interpolation_type sigma_min sigma_max noise_sampler_seed eta
tensor_format timestep_values predictor_order corrector_order tau_func flow_shift rho""".split()
)
PLAIN = {"timestep_type": "discrete", "use_flow_sigmas": False, "invert_sigmas": False}  # other values are another process
FLOW_KEYS = {"num_train_timesteps", "shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len",
             "max_image_seq_len", "shift_terminal", "time_shift_type", "stochastic_sampling", "use_karras_sigmas",
             "use_exponential_sigmas", "use_beta_sigmas"}  # fmt: skip
SIGMA_KEYS = {"sigma_min", "sigma_max", "num_train_timesteps"}
EDM_KEYS = SIGMA_KEYS | SAMPLING | {"sigma_data", "sigma_schedule", "prediction_type"}
VE_KEYS = SIGMA_KEYS | {"snr", "sampling_eps", "correct_steps", "s_noise", "s_churn", "s_min", "s_max"}


def read(config: Mapping) -> dict:
    """Our settings of a checkpoint from a scheduler_config.json: schedule, T, beta_min, beta_max, sigma_min, sigma_max,
    sigma_data, loss, time_scale.

    Raises ValueError for a process that is another one, a key that is not known, and numbers that no process has.
    """
    kind = config.get("_class_name", "DDPMScheduler")
    kind = kind if isinstance(kind, str) else "class without a name"
    if kind in REFUSED:
        raise ValueError(f"its scheduler is a {kind}, that is {REFUSED[kind]}: not supported here")
    if kind not in (*TABLES, *FLOWS, *EDMS, *VES):
        raise ValueError(f"its scheduler is a {printable(kind, 60)}, whose process is not known here: supported are "
                         "DDPMScheduler and its like, FlowMatchEulerDiscreteScheduler, EDMEulerScheduler and "
                         "ScoreSdeVeScheduler")  # fmt: skip
    flow = config.get("use_flow_sigmas") is True and config.get("prediction_type") == "flow_prediction"
    known = FLOW_KEYS if kind in FLOWS else EDM_KEYS if kind in EDMS else VE_KEYS if kind in VES else KEYS | SAMPLING
    for key, value in config.items():
        if key.startswith("_") or key in known or (key in PLAIN and value == PLAIN[key]) or value is None or value is False:
            continue
        if key == "use_flow_sigmas" and flow and kind in TABLES:
            continue
        if key == "use_flow_sigmas" or (key == "prediction_type" and kind in FLOWS):
            raise ValueError(f"the scheduler's {key}={printable(value, 40)} mixes two processes: it is not supported")
        raise ValueError(f"the scheduler's {printable(key, 40)}={printable(value, 40)} is not known: it may mean another "
                         "process; leave it out if it does not")  # fmt: skip
    T = whole("the scheduler's num_train_timesteps", config.get("num_train_timesteps", 1000))
    if kind in EDMS:
        return _edm(config, T, EDMS[kind])
    if kind in VES:
        return _ve(config, T, kind)
    if kind in FLOWS or flow:  # x_t = (1 - t) x_0 + t eps; the network is told T t and predicts eps - x_0
        return {"schedule": "flow", "T": T, "loss": "velocity", "time_scale": float(T)}
    return _table(config, T)


def _edm(config, T, usual) -> dict:
    """Karras et al.'s preconditioning, on images in [-1, 1]; "v_prediction" is the same network with the opposite sign."""
    target = config.get("prediction_type") or "epsilon"
    if target not in ("epsilon", "v_prediction"):
        raise ValueError(f"the scheduler's prediction_type={printable(target, 40)} is none of Karras et al.'s: it is epsilon "
                         "or v_prediction")  # fmt: skip
    data = positive("the scheduler's sigma_data", config.get("sigma_data") or 0.5)
    return {
        "schedule": "edm",
        "T": T,
        "loss": "edm" if target == "epsilon" else "edm-v",
        "sigma_data": data,
        **_sigmas(config, usual),
    }


def _ve(config, T, kind) -> dict:
    """The score of images in [0, 1], told sigma there: twice that is our sigma. KarrasVe's limits are those of [-1, 1]."""
    limits = _sigmas(config, VES[kind])
    if kind == "ScoreSdeVeScheduler":
        limits = {name: 2 * value for name, value in limits.items()}
    return {"schedule": "ve", "T": T, "loss": "unit-score", "time_scale": 0.5, **limits}


def _sigmas(config, usual) -> dict:
    given = (config.get("sigma_min") or usual[0], config.get("sigma_max") or usual[1])
    low, high = (positive(f"the scheduler's {name}", value) for name, value in zip(("sigma_min", "sigma_max"), given))
    if not low < high:
        raise ValueError(f"the scheduler's sigma_min={low:g} is not below its sigma_max={high:g}: one of them is wrong")
    return {"sigma_min": low, "sigma_max": high}


def _table(config, T) -> dict:
    c = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02} | {k: v for k, v in config.items() if v is not None}
    if c["beta_schedule"] not in list(BETAS) or c.get("trained_betas") is not None or c.get("rescale_betas_zero_snr"):
        raise ValueError(f"the scheduler's beta_schedule={printable(c['beta_schedule'], 40)} is not supported: only "
                         f"{', '.join(BETAS)}, with neither trained_betas nor rescale_betas_zero_snr")  # fmt: skip
    told = {"schedule": BETAS[c["beta_schedule"]], "T": T}
    if told["schedule"] != "cosine":
        told |= {name: fraction(f"the scheduler's {theirs}", c[theirs]) for name, theirs in
                 (("beta_min", "beta_start"), ("beta_max", "beta_end"))}  # fmt: skip
    target = config.get("prediction_type", "epsilon")
    if target not in list(LOSSES):
        raise ValueError(f"the scheduler's prediction_type={printable(target, 40)}: {nearest(str(target)[:40], LOSSES)}")
    if c.get("predict_epsilon") is False:  # files of 2022: the network predicts the image
        if config.get("prediction_type") not in (None, "sample"):
            raise ValueError(f"the scheduler says predict_epsilon=False and prediction_type={target!r}: leave one out")
        target = "sample"
    return told if target == "epsilon" else told | {"loss": LOSSES[target]}


def schedule(settings: Mapping):
    """The schedule of a checkpoint's settings. Raises ValueError."""
    name, T = settings["schedule"], whole("T", settings["T"])
    limits = {k: fraction(k, settings[k]) for k in ("beta_min", "beta_max") if k in settings}
    if name == "linear":  # limits are those of diffusers' configurations, which do not scale with T
        return schedules.discrete(schedules.linear_betas(T, **limits, rescale=not limits))
    if name == "scaled_linear":
        return schedules.discrete(schedules.scaled_linear_betas(T, **limits))
    if name == "cosine":
        return schedules.discrete(schedules.cosine_betas(T))
    if name == "flow":
        return schedules.RectifiedFlow()
    if name in ("edm", "ve"):
        limits = {
            k: positive(k, settings.get(k, usual)) for k, usual in zip(("sigma_min", "sigma_max"), EDMS["EDMEulerScheduler"])
        }
        return schedules.EDM(limits["sigma_max"]) if name == "edm" else schedules.VE(**limits)
    known = (*BETAS.values(), "flow", "edm", "ve")
    raise ValueError(f"schedule={printable(name, 40)} is unknown: {nearest(str(name)[:40], known)}")


def as_denoised(net, settings: Mapping):
    """(a network that predicts what our denoisers know, the name of that) of a checkpoint's network and its settings."""
    loss = settings["loss"]
    if loss in ("edm", "edm-v"):
        data = positive("sigma_data", settings.get("sigma_data", 0.5))
        return Preconditioned(net, data, 1 if loss == "edm" else -1), "x0"
    return (UnitRange(net), "score") if loss == "unit-score" else (net, loss)


def whole(what: str, value, least: int = 1, most: int = MOST_T) -> int:
    """A whole number within limits. Raises ValueError."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{what}={printable(value, 40)} is out of range: give a whole number from {least} to {most}")
    return value


def positive(what: str, value) -> float:
    """A number above 0, at most a million. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e6:
        raise ValueError(f"{what}={printable(value, 40)} is out of range: give a number above 0")
    return float(value)


def fraction(what: str, value) -> float:
    """A number above 0 and below 1. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f"{what}={printable(value, 40)} is out of range: give a number between 0 and 1")
    return float(value)
