"""Public files of weights: where each comes from and what it is. A table; nothing is fetched.

The eight digits at the end of a name are the first of the file's SHA-256, by the convention of torch's model zoo.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownFile:
    """One public file.

    Args:
        name: Of the file; where its owner names none, what the owner calls it.
        backbone: As in `network.backbone`.
        bgr: Whether its network sees blue first.
        adapted: Whether it holds a whole network for street scenes; otherwise it is the start of a training.
        holds: What it was trained on.
        source: Where to get it.
    """

    name: str
    backbone: str
    bgr: bool
    adapted: bool
    holds: str
    source: str

    @property
    def checksum(self) -> str:
        """The first eight digits of the SHA-256, empty where none was published."""
        digits = re.search(r"-([0-9a-f]{8})\.pth$", self.name)
        return digits.group(1) if digits else ""

    def lines(self) -> list[str]:
        """A row of the table: name, backbone, colour, content; then where to get it, and how to pass it."""
        use = "--model FILE or --network.weights FILE" if self.adapted else "--network.weights FILE"
        return [
            f"{self.name:<44}{self.backbone:<19}{'BGR' if self.bgr else 'RGB'}  {self.holds}",
            f"    from {self.source}",
            f"    SHA-256 {self.checksum + '...' if self.checksum else 'not published'}; pass as {use}",
        ]


def _torchvision(name: str, backbone: str, version: str) -> KnownFile:
    source = f"https://download.pytorch.org/models/{name}"
    return KnownFile(name, backbone, False, False, f"ImageNet-1k ({version} of torchvision)", source)


def _caffe_start(name: str, holds: str, source: str) -> KnownFile:
    return KnownFile(name, "resnet101", True, False, holds, source)


def _adapted(name: str, holds: str, source: str, backbone: str = "resnet101") -> KnownFile:
    return KnownFile(name, backbone, True, True, holds, source)


_UCMERCED = "http://vllab.ucmerced.edu/ytsai/CVPR18"
_BDL = "https://drive.google.com/open?id="
_ADVENT = "https://github.com/valeoai/ADVENT/releases"

KNOWN_FILES = (
    # The first file of a backbone is the one that error messages name.
    _torchvision("resnet50-0676ba61.pth", "resnet50", "V1"),
    _torchvision("resnet50-11ad3fa6.pth", "resnet50", "V2"),
    _torchvision("resnet50-19c8e357.pth", "resnet50", "older V1"),
    _torchvision("resnet101-63fe2227.pth", "resnet101", "V1"),
    _torchvision("resnet101-cd907fc2.pth", "resnet101", "V2"),
    _torchvision("resnet101-5d3b4d8f.pth", "resnet101", "older V1"),
    _torchvision("vgg16-397923af.pth", "vgg16", "V1"),
    _caffe_start(
        "DeepLab_resnet_pretrained_init-f81d91e8.pth",
        "ImageNet and COCO, start of SIM and AdaptSegNet",
        f"{_UCMERCED}/DeepLab_resnet_pretrained_init-f81d91e8.pth",
    ),
    _caffe_start("DeepLab_resnet_pretrained_imagenet.pth", "ImageNet, start of ADVENT", _ADVENT),
    _caffe_start("DeepLab-V2 of BDL", "start of BDL", f"{_BDL}1TIrTmFKqEyf3pOKniv8-53m3v9SyBK0u"),
    _adapted(
        "GTA2Cityscapes_multi-ed35151c.pth",
        "GTA5 to Cityscapes (AdaptSegNet)",
        f"{_UCMERCED}/GTA2Cityscapes_multi-ed35151c.pth",
    ),
    _adapted(
        "GTA2Cityscapes_vgg-ac4ac9f6.pth",
        "GTA5 to Cityscapes (AdaptSegNet)",
        f"{_UCMERCED}/GTA2Cityscapes_vgg-ac4ac9f6.pth",
        "vgg16_adaptsegnet",
    ),
    _adapted("gta2cityscapes_advent.pth", "GTA5 to Cityscapes (ADVENT)", _ADVENT),
    _adapted("gta2cityscapes_minent.pth", "GTA5 to Cityscapes (ADVENT, MinEnt)", _ADVENT),
    _adapted("GTA5_deeplab of BDL", "GTA5 to Cityscapes (BDL)", f"{_BDL}1uNIydmPONNh29PeXqCb9MGRAnCWxAu99"),
    _adapted("SYNTHIA_deeplab of BDL", "SYNTHIA to Cityscapes (BDL)", f"{_BDL}1RGHJ_SRLnCcFRATnaJ3Vx5YNJ7HGkUYI"),
)


def known_file(name: str, sha256: str) -> KnownFile | None:
    """The known file with this content, or with this name where no checksum is known or none agrees."""
    by_content = [file for file in KNOWN_FILES if file.checksum and sha256.startswith(file.checksum)]
    by_name = [file for file in KNOWN_FILES if file.name == name]
    return next(iter(by_content + by_name), None)
