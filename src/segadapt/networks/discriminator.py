"""The discriminator D of Eqs. (2) and (3): which domain does a map of class probabilities come from?

In: softmax of the upsampled logits. Out: one logit per patch; positive means target, and its sigmoid is the
paper's D(.). Fully convolutional, as in Tsai et al., CVPR 2018, which the authors adopt.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from segadapt.errors import InputError


class Discriminator(nn.Module):
    """Five 4x4 convolutions of stride 2, LeakyReLU(0.2) between them, no normalisation.

    Args:
        num_classes: Channels of the probability maps.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_classes, 64, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(64, 128, 4, stride=2, padding=1)
        self.conv3 = nn.Conv2d(128, 256, 4, stride=2, padding=1)
        self.conv4 = nn.Conv2d(256, 512, 4, stride=2, padding=1)
        self.classifier = nn.Conv2d(512, 1, 4, stride=2, padding=1)

    def forward(self, probabilities: Float[Tensor, "B N H W"]) -> Float[Tensor, "B 1 h w"]:
        """Returns logits of 'target' for patches, H // 32 x W // 32 of them.

        Raises:
            InputError: The maps are smaller than 32x32.
        """
        height, width = probabilities.shape[-2:]
        if min(height, width) < 32:
            raise InputError(f"size: {height}x{width} is too small for the discriminator; use 32x32 or more")
        values = probabilities
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            values = F.leaky_relu(convolution(values), 0.2, inplace=True)
        return self.classifier(values)
