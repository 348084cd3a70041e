"""segadapt: semantic-segmentation networks adapted to a new domain without labels (SIM, CVPR 2020)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segadapt.prediction.segmenter import Segmenter

__all__ = ["Segmenter", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # torch is imported when the first of these is asked for, so that the command line starts fast
    if name == "Segmenter":
        from segadapt.prediction.segmenter import Segmenter

        return Segmenter
    raise AttributeError(f"module 'segadapt' has no attribute {name!r}")
