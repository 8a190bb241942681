"""Phase one of fruits64: an autoencoder of 64 x 64 fruits with Gaussian moments, f = 4. Two cores suffice."""

from diffjax.cli.config import FirstStageConfig

config = FirstStageConfig(
    name="fruits64_kl",
    data="data/fruits64.npz",  # python -m experiments.fruits
    flip=True,
    kind="kl",
    latent_channels=3,
    width=32,
    multipliers=(1, 2, 3),
    blocks=1,
    middle=False,
    batch=8,
    disc_start=800,
    steps=1_400,
    cooldown=500,
    checkpoint_every=200,
    sample_every=400,
)
