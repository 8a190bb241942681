"""Fruits in an orchard, 64 x 64, told by a sentence and by boxes, in the latents of fruits64_kl: 16 x 16 x 3."""

from diffjax.cli.config import TrainConfig

config = TrainConfig(
    name="orchard64",
    data="data/orchard64.npz",  # python -m experiments.orchard
    autoencoder="runs/fruits64_kl",
    size=16,
    channels=3,
    network="latent",
    vocabulary=23,  # these four as in experiments/orchard.py
    words=12,
    boxes=3,
    box_classes=4,
    encoder_layers=1,
    part_dropout=0.6,
    context=64,
    width=32,
    multipliers=(1, 2),
    blocks=1,
    attention=(2,),
    heads=2,
    groups=8,
    patch=1,
    batch=64,
    lr=1e-3,
    ema=0.995,
    steps=3_000,
    cooldown=800,
    eval_images=256,
)
