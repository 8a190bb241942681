"""Phase one of fruits64 and orchard64: an autoencoder of 64 x 64 fruits with Gaussian moments, f = 4. Two cores suffice."""

from diffjax.cli.config import FirstStageConfig

config = FirstStageConfig(
    name="fruits64_kl",
    data="data/phase_one64.npz",  # python -m experiments.fruits, then python -m experiments.orchard
    flip=True,
    kind="kl",
    latent_channels=3,
    width=24,
    multipliers=(1, 2, 3),
    blocks=1,
    middle=False,
    batch=8,
    disc_start=900,
    steps=1_500,
    cooldown=500,
    eval_images=128,
    checkpoint_every=200,
    sample_every=400,
)
