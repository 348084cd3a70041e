"""segadapt: semantic-segmentation networks adapted to a new domain without labels (SIM, CVPR 2020)."""

__version__ = "0.1.0"
