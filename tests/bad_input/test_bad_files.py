"""Images, labels and folders as users have them: each mistake is one line with the file's name; nothing is written."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from mistakes import SIZE, SPACE, bytes_as, evaluate, link, noise, png, pseudo_label, refused, save, table, train
from PIL import Image

from segadapt.config import NetworkConfig
from segadapt.networks.weights import build_network, save_network

ONE = np.ones(SIZE, np.uint8)


def image(site: Path) -> Path:
    return site / "images" / "a.png"


def label(site: Path) -> Path:
    return site / "labels" / "a.png"


def image_as(suffix: str, site: Path) -> Path:
    """The image a.png under another suffix."""
    return image(site).rename(image(site).with_suffix(suffix))


def zlib_damage(site: Path) -> None:
    content = bytearray(image(site).read_bytes())
    content[200:260] = bytes(60)
    image(site).write_bytes(content)


def pages(site: Path, mode: str) -> None:
    bytes_as(image_as(".tif", site), Image.fromarray(np.ones(SIZE, mode)), "TIFF")


class Code:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@table(
    ("no bytes", lambda s: image(s).write_bytes(b""), "images/a.png|cannot be read as image"),
    ("text", lambda s: image(s).write_text("not a picture"), "images/a.png|cannot be read as image"),
    ("a page of the web", lambda s: image_as(".jpg", s).write_text("<html>404</html>"), "a.jpg|cannot be read"),
    ("a drawing", lambda s: image(s).write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"), "a.png|cannot be read"),
    ("PostScript", lambda s: image(s).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "a.png|cannot"),
    ("PDF", lambda s: image_as(".jpg", s).write_text("%PDF-1.4"), "images/a.jpg|cannot be read as image"),
    ("GIF", lambda s: bytes_as(image(s), noise(), "GIF"), "images/a.png|cannot be read as image"),
    ("numpy", lambda s: (np.save(s / "x.npy", ONE), (s / "x.npy").rename(image(s))), "a.png|cannot be read as image"),
    ("a pickle", lambda s: image(s).write_bytes(pickle.dumps(Code(s / "ran"))), "images/a.png|cannot be read"),
    ("PNG cut in its header", lambda s: bytes_as(image(s), noise(), "PNG", 0.006), "images/a.png|cannot be read"),
    ("PNG cut in half", lambda s: bytes_as(image(s), noise(), "PNG", 0.5), "images/a.png|cannot be read as image"),
    ("PNG cut at its end", lambda s: bytes_as(image(s), noise((200, 200)), "PNG", 0.9), "images/a.png|cannot be read"),
    ("JPEG cut", lambda s: bytes_as(image_as(".jpg", s), noise((200, 200)), "JPEG", 0.5), "images/a.jpg|truncated"),
    ("JPEG cut, progressive", lambda s: bytes_as(image_as(".jpg", s), noise((200, 200)), "JPEG", 0.5, progressive=True),
     "images/a.jpg|truncated"),
    ("JPEG of a start alone", lambda s: image_as(".jpg", s).write_bytes(b"\xff\xd8\xff"), "a.jpg|cannot be read"),
    ("TIFF cut", lambda s: bytes_as(image_as(".tif", s), noise(), "TIFF", 0.5), "images/a.tif|cannot be read as image"),
    ("BMP cut", lambda s: bytes_as(image_as(".bmp", s), noise(), "BMP", 0.5), "images/a.bmp|cannot be read as image"),
    ("WebP cut", lambda s: bytes_as(image_as(".webp", s), noise(), "WEBP", 0.5), "images/a.webp|cannot be read"),
    ("CMYK cut", lambda s: bytes_as(image_as(".jpg", s), noise((200, 200)).convert("CMYK"), "JPEG", 0.5),
     "images/a.jpg|truncated"),
    ("damaged pixels", zlib_damage, "images/a.png|cannot be read as image"),
    ("wrong checksum", lambda s: png(image(s), (1, 1, 8, 0, 0, 0, 0), b"\0\0", crc=1), "images/a.png|cannot be read"),
    ("no pixels", lambda s: png(image(s), (0, 0, 8, 2, 0, 0, 0)), "images/a.png|cannot be read as image"),
    ("13 bits", lambda s: png(image(s), (4, 4, 13, 2, 0, 0, 0), bytes(99)), "images/a.png|cannot be read as image"),
    ("a bomb", lambda s: png(image(s), (30000, 30000, 8, 2, 0, 0, 0), bytes(9)), "images/a.png|decompression bomb"),
    ("a bomb of 1 bit", lambda s: png(image(s), (10**6, 10**6, 1, 0, 0, 0, 0), bytes(9)), "a.png|decompression bomb"),
    ("less than its header says", lambda s: png(image(s), (900, 900, 8, 2, 0, 0, 0), bytes(9)), "a.png|cannot be read"),
    ("floating point", lambda s: pages(s, "float32"), "images/a.tif|32 bits|write 8 or 16 bits"),
    ("32 bits", lambda s: pages(s, "int32"), "images/a.tif|32 bits|write 8 or 16 bits"),
    ("a link to nothing", lambda s: link(image(s), "nowhere.png"), "images/a.png|is missing"),
    ("a link to itself", lambda s: link(image(s), "a.png"), "images/a.png|cannot be read as image"),
    ("a link to a device", lambda s: link(image(s), "/dev/zero"), "images/a.png|is no file"),
    ("a pipe", lambda s: (image(s).unlink(), os.mkfifo(image(s))), "images/a.png|is no file"),
)  # fmt: skip
@pytest.mark.parametrize("command", [evaluate, pseudo_label])
def test_bad_images(mistake, command, site, model, capsys):
    mistake.make(site)
    refused(command(model, site), site, mistake.words, capsys)
    assert not (site / "ran").exists()


@table(
    ("missing", lambda s: label(s).unlink(), "images/a.png|labels/a.png is missing|1 of 2"),
    ("all missing", lambda s: [f.unlink() for f in (s / "labels").iterdir()], "labels/a.png is missing|2 of 2"),
    ("JPEG beside the images", lambda s: label(s).rename(label(s).with_suffix(".jpg")), "labels/a.png is missing"),
    ("other names", lambda s: label(s).rename(s / "labels" / "a_labelIds.png"), "labels/a.png is missing"),
    ("upper case", lambda s: label(s).rename(s / "labels" / "A.png"), "labels/a.png is missing"),
    ("no bytes", lambda s: label(s).write_bytes(b""), "labels/a.png|cannot be read as label file"),
    ("text", lambda s: label(s).write_text("1 1 1"), "labels/a.png|cannot be read as label file"),
    ("cut in half", lambda s: bytes_as(label(s), noise().convert("L"), "PNG", 0.5), "labels/a.png|cannot be read"),
    ("JPEG by content", lambda s: bytes_as(label(s), Image.fromarray(ONE), "JPEG"), "labels/a.png|is a JPEG file"),
    ("BMP by content", lambda s: bytes_as(label(s), Image.fromarray(ONE), "BMP"), "labels/a.png|is a BMP file"),
    ("TIFF by content", lambda s: bytes_as(label(s), Image.fromarray(ONE), "TIFF"), "labels/a.png|is a TIFF file"),
    ("half the size", lambda s: save(label(s), ONE[::2, ::2]), "labels/a.png|is 16x16|images/a.png is 32x32"),
    ("one row less", lambda s: save(label(s), ONE[1:]), "labels/a.png|is 31x32|images/a.png is 32x32"),
    ("a pixel", lambda s: save(label(s), ONE[:1, :1]), "labels/a.png|is 1x1|images/a.png is 32x32"),
    ("colours", lambda s: save(label(s), np.stack([ONE] * 3, 2)), "labels/a.png|is a colour picture (mode RGB)"),
    ("colours with alpha", lambda s: save(label(s), np.stack([ONE] * 4, 2)), "labels/a.png|colour picture (mode RGBA)"),
    ("grey with alpha", lambda s: save(label(s), np.stack([ONE] * 2, 2)), "labels/a.png|colour picture (mode LA)"),
    ("2 bits of grey", lambda s: png(label(s), (4, 4, 2, 0, 0, 0, 0), bytes(8)), "labels/a.png|2 bits|with 8 bits"),
    ("4 bits of grey", lambda s: png(label(s), (4, 4, 4, 0, 0, 0, 0), bytes(12)), "labels/a.png|4 bits|with 8 bits"),
    ("a bomb", lambda s: png(label(s), (30000, 30000, 8, 0, 0, 0, 0), bytes(9)), "labels/a.png|decompression bomb"),
    ("16 bits cut", lambda s: png(label(s), (32, 32, 16, 2, 0, 0, 0), bytes(9)), "labels/a.png|cannot be read"),
    ("no known class", lambda s: [save(f, ONE * 77) for f in (s / "labels").iterdir()],
     "labels/a.png|id 77: 2048 pixels|label space site (1, 2)|set label_space"),
    ("two unknown ids",
     lambda s: (save(label(s), ONE * 40), save(s / "labels" / "b.png", np.eye(32, dtype=np.uint8) * 9)),
     "id 40: 1024 pixels|id 0: 992 pixels|id 9: 32 pixels"),
    ("unknown ids of 16 bits", lambda s: [save(f, ONE.astype(np.uint16) * 999) for f in (s / "labels").iterdir()],
     "id 999: 2048 pixels"),
    ("all ignored", lambda s: [save(f, ONE * 255) for f in (s / "labels").iterdir()], "id 255: 2048 pixels"),
    ("a link to nothing", lambda s: link(label(s), "nowhere.png"), "labels/a.png|is missing"),
    ("a link to itself", lambda s: link(label(s), "a.png"), "labels/a.png|cannot be read as label file"),
    ("a folder", lambda s: (label(s).unlink(), label(s).mkdir()), "labels/a.png is missing"),
    ("a pipe", lambda s: (label(s).unlink(), os.mkfifo(label(s))), "labels/a.png|is no file"),
)  # fmt: skip
def test_bad_labels(mistake, site, model, capsys):
    mistake.make(site)
    refused(evaluate(model, site), site, mistake.words, capsys)


def test_labels_of_no_class_of_the_model_give_no_score(site, tmp_path_factory, capsys):
    one = SPACE.restrict([SPACE.names[1]])
    model = tmp_path_factory.mktemp("one class") / "model.safetensors"
    save_network(model, build_network(NetworkConfig("efficientnet_lite0", "random"), one, 0))
    for file in (site / "labels").iterdir():
        save(file, ONE * SPACE.ids[0][0])
    refused(evaluate(model, site, "--json"), site, f"{site}: no label of its|({one.names[0]})", capsys)


@table(
    ("no images folder", lambda s: (s / "images").rename(s / "pictures"), "images: no such folder"),
    ("no labels folder", lambda s: (s / "labels").rename(s / "annotations"), "labels: no such folder"),
    ("images is a file", lambda s: (shutil.rmtree(s / "images"), (s / "images").write_text("")), "images: no such"),
    ("an empty folder", lambda s: [f.unlink() for f in (s / "images").iterdir()], "images: holds no images"),
    ("hidden files only",
     lambda s: [f.rename(f.with_name("." + f.name)) for f in (s / "images").iterdir()], "images: holds no images"),
    ("no suffix", lambda s: [f.rename(f.with_suffix("")) for f in (s / "images").iterdir()], "images: holds no images"),
    ("unknown suffix",
     lambda s: [f.rename(f.with_suffix(".gif")) for f in (s / "images").iterdir()], "images: holds no images"),
    ("two of one name",
     lambda s: save(s / "images" / "a.jpg", np.ones((*SIZE, 3), np.uint8)), "a.png|same name as a.jpg"),
    ("one name in two cases", lambda s: shutil.copy(image(s), s / "images" / "a.PNG"), "same name as a.PNG"),
    ("two labels of one name", lambda s: shutil.copy(label(s), s / "labels" / "a.PNG"), "same name as a.PNG"),
    ("a link to its own folder", lambda s: link(s / "images" / "again", "."), "images/again|holds it|remove the link"),
    ("a link to the folder above", lambda s: link(s / "images" / "up", ".."), "images/up|which holds it"),
    ("a link to everything", lambda s: link(s / "images" / "up", "/"), "images/up|which holds it"),
    ("links in a circle",
     lambda s: [(s / x).mkdir() or link(s / x / y, f"../{y}") for x, y in (("images/x", "y"), ("images/y", "x"))],
     "which holds it"),
    ("a link to itself as folder",
     lambda s: (shutil.rmtree(s / "images"), link(s / "images", "images")), "images: no such folder"),
    ("no label space", lambda s: (s / "label_space.yaml").unlink(), "label_space.yaml: no label space"),
    ("other classes than the model", lambda s: (s / "label_space.yaml").write_text(
        "name: other\nclasses: [{name: tree, kind: stuff, colour: [0, 0, 0], ids: [1]}]"),
     "other (tree)|no class in common with site (road, car)"),
)  # fmt: skip
def test_bad_folders(mistake, site, model, capsys):
    mistake.make(site)
    refused(evaluate(model, site), site, mistake.words, capsys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["root="], "root is empty"),
        (["root=/no/such/place"], "/no/such/place|is not a folder"),
        (["root=/dev/null"], "/dev/null|is not a folder"),
        ([f"root={'x' * 300}"], "xxx"),
        (["split=val"], "val/images: no such folder"),
        (["images=pictures/*"], "pictures: no such folder"),
        (["images=images/a"], "images: 'images/a' has no *"),
        (["images=images/*_rgb"], "images/*_rgb"),
        (["labels=labels/a"], "labels: 'labels/a' has no *"),
        (["labels=labels/*.jpg"], "labels: 'labels/*.jpg'|no PNG"),
        (["images=*/*", "labels=labels/*"], "labels: 'labels/*' has 1 *|'*/*' has 2"),
        (["size=[0,32]"], "size: [0, 32] is not possible"),
        (["size=[-5,32]"], "size: [-5, 32] is not possible"),
        (["label_space=moon"], "label_space: 'moon'|neither shipped nor a file"),
        (["label_space=/tmp"], "label_space: '/tmp'|neither shipped nor a file"),
        (["reader=gta5", "split=val"], "split: 'val'|gta5 has no splits"),
        (["reader=gta5", "images=x/*"], "images: 'x/*'|reader gta5 knows"),
        (["reader=gta5", "label_space=streets11"], "label_space: 'streets11'"),
        (["reader=gta5"], "no id in it|label space cityscapes19"),
        (["reader=synthia"], "RGB: no such folder"),
        (["reader=cityscapes"], "split: ''|leftImg8bit"),
        (["reader=cityscapes", "split=val"], "split: 'val'|leftImg8bit"),
        (["reader=camvid", "split=val"], "split: 'val'|images, labels"),
        (["reader=coco"], "data.reader|coco"),
    ],
)
def test_bad_options_of_the_data(options, words, site, model, capsys):
    refused(evaluate(model, site, *(f"--data.{option}" for option in options)), site, words, capsys)


def test_labels_that_all_differ_in_size_from_images_of_gta5(site, model, capsys):
    for file in (site / "labels").iterdir():
        save(file, ONE[1:])
    words = "labels: holds a label of the name and size of none of the 2 images|2 of another size"
    refused(evaluate(model, site, "--data.reader=gta5"), site, words, capsys)


@table(
    ("an image", lambda s: [f.write_text("text") for f in (s / "images").iterdir()], "cannot be read as image"),
    ("a label", lambda s: [save(f, ONE[1:]) for f in (s / "labels").iterdir()], "is 31x32, its image"),
    ("other sizes in a batch",
     lambda s: (save(image(s), np.ones((40, 40, 3), np.uint8)), save(label(s), np.ones((40, 40), np.uint8))),
     "size: images of one batch differ|set size"),
)  # fmt: skip
def test_a_training_reads_before_it_writes(mistake, site, capsys):
    mistake.make(site)
    sizes = [f"--{name}.size=null" for name in ("source", "target", "test")]
    arguments = train(site, "--row=source_only", "--schedule.batch_size=2", *sizes)
    refused(arguments, site, mistake.words, capsys)


@pytest.mark.parametrize(
    ("run_dir", "words"),
    [("label_space.yaml", "label_space.yaml"), ("label_space.yaml/run", "label_space.yaml"), ("/proc/x", "/proc/x")],
)  # fmt: skip
def test_a_run_folder_that_cannot_be_made(run_dir, words, site, capsys):
    refused(train(site, "--row=source_only", f"--run_dir={site / run_dir}"), site, words, capsys)


def test_an_out_folder_that_cannot_be_made(site, model, capsys):
    refused(pseudo_label(model, site, f"--out={site}/label_space.yaml"), site, "label_space.yaml", capsys)


@pytest.mark.parametrize(("out", "words"), [("labels", "says what made|labels/a.png"), ("images/new", "lies within")])
def test_pseudo_labels_take_no_place_of_labels_or_images(out, words, site, model, capsys):
    refused(pseudo_label(model, site, f"--out={site}/{out}"), site, words, capsys)
