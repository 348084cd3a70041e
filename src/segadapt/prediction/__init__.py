"""A trained network at work: label maps of new images and videos, recalibration, export to other programs."""

from typing import Literal

View = Literal["auto", "whole", "windows"]  # how images of any size are shown to the network, see windows.py
