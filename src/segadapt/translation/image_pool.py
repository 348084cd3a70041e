"""Generated images of earlier steps, shown to the discriminator again (Shrivastava et al. 2017; Zhu et al., sec. 4).

In: the images generated in a step. Out: as many, about half of them older ones.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class ImagePool:
    """Keeps up to `size` images.

    Args:
        size: 0 keeps none, and `exchange` returns what it is given.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def exchange(self, images: Float[Tensor, "B 3 H W"], random: np.random.Generator) -> Float[Tensor, "B 3 H W"]:
        """Each image goes in while there is room; from then on it, or, at even chances, a stored one comes back.

        An image that comes back leaves its place to the new one. Images of another size than the stored one stay.
        """
        chosen = []
        for image in images.detach():
            if len(self.images) < self.size:
                self.images.append(image.clone())
            elif self.size and random.random() < 0.5:
                place = int(random.integers(self.size))
                if self.images[place].shape == image.shape:
                    self.images[place], image = image.clone(), self.images[place]
            chosen.append(image)
        return torch.stack(chosen)
