"""DnCNN (Zhang et al., TIP 2017): a chain of 3x3 convolutions that predicts the noise in an image of one noise level."""

import flax.linen as nn

from .layers import conv


class DnCNN(nn.Module):
    """x (..., H, W, C), grey or colour in [0, 1] -> its noise, of the same shape: the clean image is x - net(x).

    depth   convolutions, ReLU between them, no normalisation (merged into the weights of the published models)
    width   channels within
    """

    depth: int = 17
    width: int = 64

    @nn.compact
    def __call__(self, x):
        h = x
        for n in range(self.depth):
            last = n == self.depth - 1
            h = conv(x.shape[-1] if last else self.width, name=f"conv{n}")(h)
            h = h if last else nn.relu(h)
        return h
