"""Fashion-MNIST padded to 32 x 32, class-conditional: the prior that ships (diffjax.zoo, "fashion32")."""

from diffjax.cli.config import TrainConfig

config = TrainConfig(
    name="fashion32",
    data="/usr/share/datasets/fashion-mnist",  # apt-get install dataset-fashion-mnist
    classes=10,
    batch=64,
    lr=1.5e-3,
    ema=0.9995,
    steps=9_000,
    cooldown=3_000,
)
