"""The UNet of DDPM, as diffusers' `UNet2DModel` generalises it: public checkpoints such as google/ddpm-celebahq-256.

Source: Ho, Jain and Abbeel 2020, arXiv:2006.11239, appendix B. It is the network of `UNet` with other constants (time
embedding sin first, padding after the end of strided convolutions, epsilon 1e-6) and its levels given one by one.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from .unet import Part, UNet


class DDPMUNet(UNet):
    """Fields as in `UNet`, and

      attention_down, attention_up  for each level (0 = full size): attention after its blocks, on the way down / up
      resample_down, resample_up    for each level but the last: "conv" or "res" (a residual block that resamples)
      attention_middle              "normed" (usual), "bare" (diffusers with scale_shift: no norm), or None: no attention
      centre                        the network first maps x to 2x - 1
      epsilon                       of the norms
      sin_first, frequency_shift    order of the time embedding; its slowest frequency is 1e-4 for 1, faster for 0
      down_padding                  ((0, 1), (0, 1)) as in the TensorFlow code, or ((1, 1), (1, 1))

    `attention`, `resblock_updown` and `conv_resample` are not used.
    """

    attention_down: Sequence[bool] = (False, True)
    attention_up: Sequence[bool] = (False, True)
    resample_down: Sequence[str] = ("conv",)
    resample_up: Sequence[str] = ("conv",)
    attention_middle: str | None = "normed"
    centre: bool = False
    epsilon: float = 1e-6
    sin_first: bool = True
    frequency_shift: float = 1
    down_padding: Sequence = ((0, 1), (0, 1))
    qkv_order: str = "new"

    def __post_init__(self):
        super().__post_init__()
        levels = len(self.multipliers)
        wanted = dict(attention_down=levels, attention_up=levels, resample_down=levels - 1, resample_up=levels - 1)
        for field, number in wanted.items():
            if len(getattr(self, field)) != number:
                raise ValueError(f"{field} has {len(getattr(self, field))} entries, {levels} levels need {number}")

    def network(self, x, t, y, train):
        return super().network(2 * x - jnp.ones((), x.dtype) if self.centre else x, t, y, train)

    def attends(self, way, level):
        return (self.attention_down if way == "down" else self.attention_up)[level]

    def middle_path(self):
        first, attention, last = super().middle_path()
        if self.attention_middle is None:
            return [first, last]
        return [first, attention._replace(normed=self.attention_middle == "normed"), last]

    def _resample(self, way, level, width):
        kind = self.resample_down[level] if way == "down" else self.resample_up[level - 1]
        name = f"{way}_{level}_resample"
        return Part(name, "res", width, resample=way) if kind == "res" else Part(name, way, width)
