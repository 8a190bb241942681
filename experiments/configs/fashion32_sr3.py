"""Fashion-MNIST padded to 32 x 32 from 8 x 8: SR3, told the noise level and the small image enlarged ("fashion32-sr3")."""

from diffjax.cli.config import TrainConfig

config = TrainConfig(
    name="fashion32-sr3",
    data="/usr/share/datasets/fashion-mnist",  # apt-get install dataset-fashion-mnist
    condition="sr4",
    condition_channels=1,
    network="sr3",
    width=32,
    multipliers=(1, 2, 2),
    blocks=1,
    patch=1,
    scale_shift=False,
    schedule="linear",
    loss="eps",
    norm="l1",
    times="levels",
    batch=64,
    lr=1e-3,
    steps=5_000,
    cooldown=2_000,
    eval_images=128,
)
