"""Source images in the target's style, the paper's "IT": colours, histograms, Fourier amplitudes, CycleGAN."""

from segadapt.translation.colour import match_histogram, match_lab, to_lab, to_rgb
from segadapt.translation.fourier import swap_amplitude
from segadapt.translation.online import StyleTransfer

__all__ = ["StyleTransfer", "match_histogram", "match_lab", "swap_amplitude", "to_lab", "to_rgb"]
