"""`segadapt weights`: public files of weights."""

from jsonargparse import ArgumentParser, Namespace

EXAMPLE = "segadapt weights resnet101-63fe2227.pth"


def add_options(command: ArgumentParser) -> None:
    """Options of the command."""
    command.add_argument("files", type=str, nargs="*", help="files to identify")


def run(options: Namespace) -> int:
    """Say what each file is, or list the known ones."""
    from segadapt.networks.known_files import KNOWN_FILES
    from segadapt.networks.weights import identify

    for path in options.files:
        print("\n".join(identify(path).lines()))
    if not options.files:
        print("\n".join(line for file in KNOWN_FILES for line in file.lines()))
    return 0
