"""What one training run is: a frozen dataclass.

No jax here: the command line is read before jax starts, because the number of host devices must be set first.
"""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path

from ..wording import printable, read_json, some
from .errors import UserError


@dataclass(frozen=True)
class TrainConfig:
    """Every field is also an option of ``diffjax train``."""

    name: str
    # --- data
    data: str  # folder with idx files, folder of images, or .npz
    size: int = 32  # side of the square images the network sees
    channels: int = 1
    fit: str = "pad"  # pad: centre on a larger black square; resize: shorter side to size, centre crop
    flip: bool = False  # mirror half of the images (not where left and right differ in meaning)
    classes: int = 0  # 0: unconditional
    label_dropout: float = 0.1  # share of images trained with the null condition (classifier-free guidance)
    # --- latent diffusion: size and channels are then those of the latents
    autoencoder: str = ""  # folder of its run (phase one) or of an exported one: the network sees its latents; empty: pixels
    latent_scale: float = 0.0  # of the latents, for all channels; 0: shift and scale of each channel are measured
    # --- a network that is told a measurement of the picture
    condition: str = ""  # of concat and sr3: srN, the picture made N times smaller; inpaint, with a hole, and the mask
    condition_channels: int = 0  # the picture's, or the latents', and for inpaint one more
    # --- network (diffjax.nets)
    network: str = "unet"  # unet; concat, a unet with the condition beside its input; sr3, also told the noise level (both:
    # classes 0); latent, a unet told words and boxes by cross-attention (classes 0); ncsnpp (which has one head, its own
    # groups, and no scale_shift, resblock_updown or remat)
    width: int = 32
    multipliers: tuple[float, ...] = (1, 2)
    blocks: int = 2
    attention: tuple[int, ...] = ()
    heads: int = 1
    groups: int = 8
    patch: int = 2
    scale_shift: bool = True
    resblock_updown: bool = False
    dropout: float = 0.0
    remat: bool = False
    bfloat16: bool = False  # compute type; parameters stay float32
    embedding: str = "fourier"  # of ncsnpp: fourier (of the logarithm of the noise level), positional
    fourier_scale: float = 1.0  # deviation of its frequencies
    progressive_input: str = "residual"  # of ncsnpp: none, input_skip, residual
    progressive: str = "none"  # of ncsnpp: none, output_skip, residual
    sigma_data: float = 0.0  # of ncsnpp: > 0: the score of Gaussian data of this deviation is built in; 0: out / sigma
    rescale: bool = False  # of sr3: sums of two branches divided by sqrt(2); with resblock_updown the paper's blocks
    vocabulary: int = 0  # of latent: words known, the empty one included; 0: no words
    words: int = 0  # of latent: the most in a text
    boxes: int = 0  # of latent: the most in a picture; 0: none
    box_classes: int = 0  # of latent: what may be in a box, nothing included
    context: int = 64  # of latent: width of a token
    depth: int = 1  # of latent: transformer blocks at each attention
    encoder_layers: int = 2  # of latent: of the token encoder
    part_dropout: float = 0.0  # of latent: share of pictures told only the words or only the boxes
    # --- diffusion and loss
    schedule: str = "cosine"  # tables of T rows: cosine, linear, scaled_linear; formulas: ve, vp, subvp, flow
    T: int = 1000
    sigma_min: float = 0.01  # of ve
    sigma_max: float = 50.0  # of ve: about the largest distance of two images
    loss: str = "v"  # v, x0, eps, hybrid (eps + learned variance), score, velocity
    weighting: str = "plain"  # plain, eps, x0, v, velocity, min_snr
    gamma: float = 5.0  # of min_snr
    norm: str = "l2"  # of v, x0, eps and velocity: l2, squared errors, or l1, their magnitudes
    learn_log_var: bool = False  # of v, x0, eps and velocity on a table: the log-variance of the error at each row is learned
    times: str = "uniform"  # uniform, logit_normal, log_snr (importance sampling for the likelihood), levels (sr3)
    # --- optimisation
    steps: int = 10_000
    batch: int = 128  # images per step over all devices
    lr: float = 2e-3
    warmup: int = 200  # steps of linear warm-up
    cooldown: int = 2_000  # the last steps, in which the rate falls linearly to 0; constant before
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.0
    clip: float = 1.0  # global gradient norm
    ema: float = 0.999  # reached by the warm-up (1 + n) / (10 + n)
    seed: int = 0
    # --- bookkeeping
    out: str = ""  # default: runs/NAME
    log_every: int = 50
    checkpoint_every: int = 500  # and the held-out loss is measured
    eval_images: int = 512  # held-out images per noise level
    keep: int = 2  # last checkpoints kept, besides the best one
    sample_every: int = 1_000
    sample_steps: int = 30


@dataclass(frozen=True)
class FirstStageConfig:
    """Phase one of latent diffusion: an autoencoder against a discriminator. Every field is an option of ``diffjax train``."""

    name: str
    # --- data
    data: str  # folder with idx files, folder of images, or .npz
    phase: str = "first"
    size: int = 64  # side of the square images
    channels: int = 3
    fit: str = "pad"
    flip: bool = False
    # --- autoencoder (diffjax.nets): f = 2^(levels - 1)
    kind: str = "kl"  # kl: Gaussian moments; vq: a codebook
    latent_channels: int = 3
    codes: int = 512  # of the codebook
    width: int = 32
    multipliers: tuple[float, ...] = (1, 2, 4)
    blocks: int = 1
    attention: tuple[int, ...] = ()
    middle: bool = True  # attention in the middle
    groups: int = 8
    # --- loss
    perceptual: float = 1.0  # weight of LPIPS; 0: left out
    vgg: str = ""  # its files with VGG16, as the official code has it (zoo.perceptual), with commas between; empty: AlexNet
    kl_weight: float = 1e-6  # of sums over an image, as in the official code
    codebook_weight: float = 1.0
    beta: float = 0.25  # on the codebook's half of its loss
    disc_weight: float = 0.5  # times the adaptive weight
    disc_start: int = 1_000  # the step from which the discriminator plays; before, it costs nothing. Beyond steps: never
    disc_loss: str = "hinge"  # hinge, vanilla
    disc_width: int = 32
    disc_layers: int = 2
    # --- optimisation
    steps: int = 2_000
    batch: int = 16
    lr: float = 4e-4
    warmup: int = 100
    cooldown: int = 600
    b1: float = 0.5
    b2: float = 0.9
    clip: float = 0.0  # global gradient norm; 0: not clipped
    ema: float = 0.99
    seed: int = 0
    # --- bookkeeping
    out: str = ""  # default: runs/NAME
    log_every: int = 50
    checkpoint_every: int = 250
    eval_images: int = 128
    keep: int = 2
    sample_every: int = 500  # pictures of reconstructions beside their originals


# What a resumed run may change: nothing that alters the steps already taken. `steps` and `cooldown` only move the end.
CHANGEABLE = frozenset("data steps cooldown out log_every eval_images checkpoint_every keep sample_every sample_steps".split())


def from_dict(values: dict, where) -> TrainConfig | FirstStageConfig:
    """The configuration that JSON holds; ``where`` it lay. Raises UserError for fields that are missing or unknown."""
    kind = FirstStageConfig if values.get("phase") == "first" else TrainConfig
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = [name for name in values if name not in fields]
    missing = [name for name, f in fields.items() if f.default is dataclasses.MISSING and name not in values]
    if unknown or missing:
        what = [f"has unknown fields {some(unknown, width=40)}"] * bool(unknown) + [f"lacks {', '.join(missing)}"] * bool(
            missing
        )
        raise UserError(f"{where} is no configuration: it {' and '.join(what)}, as of another version")
    for name, value in values.items():
        of = fields[name].type
        wanted = (list, tuple) if of.startswith("tuple") else {"int": int, "float": (int, float), "bool": bool, "str": str}[of]
        if not isinstance(value, wanted) or (isinstance(value, bool) and of != "bool"):
            raise UserError(f"{where} is no configuration: its {name} {printable(value, 40)!r} is not of type {of}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def read(file) -> TrainConfig | FirstStageConfig:
    """The configuration of a JSON file: as a run keeps it (config.json), or in a prior's card. Raises UserError."""
    file = Path(file)
    try:
        values = read_json(file)
    except ValueError as error:
        raise UserError(f"configuration {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"configuration {file} holds no JSON object: give one with the fields of a configuration")
    return from_dict(values["config"] if file.name == "card.json" and "config" in values else values, file)


def bundled() -> dict[str, TrainConfig | FirstStageConfig]:
    """By name: the defaults of both phases, and how the priors that ship were trained."""
    zoo = Path(__file__).parents[1] / "zoo"
    ours = {"default": TrainConfig("mine", ""), "first_stage": FirstStageConfig("mine", "")}
    return ours | {card.parent.name: read(card) for card in sorted(zoo.glob("*/card.json"))}


def command(config, known: dict | None = None) -> str:
    """The command that trains so: a configuration of that name, or the defaults, and every option that differs."""
    known = bundled() if known is None else known
    default = "first_stage" if isinstance(config, FirstStageConfig) else "default"
    name = config.name if type(known.get(config.name)) is type(config) else default
    words = ["diffjax", "train", name]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != getattr(known[name], field.name) and field.name != "out":
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"--{field.name.replace('_', '-')}={text}")
    return shlex.join(words)
