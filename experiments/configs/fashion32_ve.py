"""Fashion-MNIST padded to 32 x 32, class-conditional: NCSN++ as a score under the variance-exploding SDE ("fashion32-ve").

sigma_max: the largest distance of two training images is 44.9 (Song and Ermon 2020, arXiv:2006.09011, technique 1). The score
of Gaussian data is built in (sigma_data) and errors are weighted as those of v: so that an hour on two cores is enough.
"""

from diffjax.cli.config import TrainConfig

config = TrainConfig(
    name="fashion32-ve",
    data="/usr/share/datasets/fashion-mnist",  # apt-get install dataset-fashion-mnist
    classes=10,
    network="ncsnpp",
    width=32,
    multipliers=(1, 2),
    blocks=2,
    patch=2,
    sigma_data=1.0,
    schedule="ve",
    sigma_max=45.0,
    loss="score",
    weighting="v",
    batch=64,
    lr=1.5e-3,
    ema=0.999,
    steps=5_000,
    cooldown=2_000,
    checkpoint_every=100,
    eval_images=128,
)
