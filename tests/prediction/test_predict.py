"""`segadapt predict` and `Segmenter`: what is written, from what, and that it is what `evaluate` scores."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model_files import SIZE, write_model
from segadapt.cli import main
from segadapt.data.label_spaces import STREETS11
from segadapt.errors import InputError
from segadapt.evaluation.metrics import ConfusionMatrix
from segadapt.prediction.pictures import read_srgb, rgb_of
from segadapt.prediction.segmenter import Segmenter, refuse_no_rgb
from segadapt.prediction.sources import find_sources, upright
from streets import ROOT, few

PHOTO = ROOT / "data/streets/adverse/val/images/50120.jpg"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def segmenter(model: Path) -> Segmenter:
    return Segmenter.load(model)


def predicted(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, float]:
    """The JSON of a `segadapt predict` that succeeds."""
    capsys.readouterr()
    assert main(["predict", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a `segadapt predict` that is refused says."""
    capsys.readouterr()
    assert main(["predict", *map(str, arguments), "--quiet"]) == 2
    return capsys.readouterr().err


def write_photo(path: Path, size: tuple[int, int] = SIZE, **options: object) -> Path:
    """The photograph at (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(PHOTO).resize((size[1], size[0])).save(path, **options)
    return path


def test_the_label_maps_have_the_score_of_evaluate(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = few(tmp_path) / "adverse"
    summary = predicted(capsys, model, data / "val/images", "--out", tmp_path / "out")
    assert (summary["images"], summary["predicted"], summary["windowed"]) == (6, 6, 0)
    matrix = ConfusionMatrix(STREETS11.num_classes)
    for file in sorted((data / "val/labels").iterdir()):
        labels = STREETS11.lookup()[np.array(Image.open(file))]
        found = np.array(Image.open(tmp_path / "out/labels" / file.name))
        matrix.update(torch.from_numpy(found), torch.from_numpy(labels))
    assert main(["evaluate", f"--model={model}", f"--data.root={data}", "--data.split=val", "--json", "--quiet"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["miou"] > 1
    assert 100 * matrix.miou() == pytest.approx(scores["miou"], abs=1e-9)


def test_the_files_say_what_the_network_says(
    model: Path, segmenter: Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    predicted(capsys, model, PHOTO, "--out", out, "--overlay", "--confidence", "--probabilities")
    prediction = segmenter.predict(PHOTO)
    picture = Image.open(out / "labels/50120.png")
    assert (picture.mode, picture.size) == ("P", (384, 288))
    np.testing.assert_array_equal(np.array(picture), prediction.labels)
    assert len(np.unique(prediction.labels)) > 2
    colours = np.array(STREETS11.colours)[prediction.labels]
    np.testing.assert_array_equal(np.array(picture.convert("RGB")), colours)
    blend = (np.array(Image.open(PHOTO)).astype(int) + colours) / 2
    assert np.abs(np.array(Image.open(out / "overlays/50120.png")) - blend).max() <= 1
    files = sorted((out / "probabilities/50120").iterdir())
    assert [file.stem[3:] for file in files] == list(STREETS11.names)
    shares = np.stack([np.array(Image.open(file)) for file in files]).astype(int)
    assert np.abs(shares.sum(0) - 65535).max() <= len(files)
    at_label = np.take_along_axis(shares, prediction.labels[None].astype(int), 0)[0]
    np.testing.assert_array_equal(at_label, shares.max(0))
    confidence = Image.open(out / "confidence/50120.png")
    assert confidence.mode == "I;16"
    np.testing.assert_array_equal(np.array(confidence), at_label)
    np.testing.assert_allclose(at_label / 65535, prediction.confidence(), atol=1e-5)


def test_files_arrays_and_pictures_are_one(segmenter: Segmenter) -> None:
    labels = segmenter.predict(PHOTO).labels
    np.testing.assert_array_equal(segmenter.predict(str(PHOTO)).labels, labels)
    np.testing.assert_array_equal(segmenter.predict(Image.open(PHOTO)).labels, labels)
    np.testing.assert_array_equal(segmenter.predict(np.array(Image.open(PHOTO))).labels, labels)


def test_a_picture_of_16_bits_is_its_file(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "1.png")
    with Image.open(tmp_path / "1.png") as picture:
        np.testing.assert_array_equal(rgb_of(picture), read_srgb(tmp_path / "1.png"))
    assert read_srgb(tmp_path / "1.png").mean() == pytest.approx(127.5, abs=1)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((48, 64, 3), np.float32),  # values from 0 to 1, say
        np.zeros((48, 64), np.uint8),
        np.zeros((48, 64, 4), np.uint8),
        np.zeros((3, 48, 64), np.uint8),
        np.zeros((0, 64, 3), np.uint8),
    ],
)
def test_an_array_that_is_no_rgb_image_is_refused(image: np.ndarray) -> None:
    refuse_no_rgb(np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(InputError, match="give uint8 RGB"):
        refuse_no_rgb(image)


@pytest.mark.parametrize("size", [(1, 1), (12, 100), (100, 20), (48, 64), (97, 65)])
@pytest.mark.parametrize("view", ["auto", "windows"])
def test_labels_have_the_size_of_the_image(segmenter: Segmenter, size: tuple[int, int], view: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    looking = Segmenter(segmenter.network, SIZE, view)  # type: ignore[arg-type]
    assert looking.predict(image).labels.shape == size


def test_a_batch_is_its_images(segmenter: Segmenter) -> None:
    images = [np.array(Image.open(PHOTO).resize(size)) for size in ((64, 48), (90, 60), (300, 48), (64, 48), (80, 300))]
    together = [prediction.labels for prediction in segmenter.predict_batch(images)]
    for labels, image in zip(together, images, strict=True):
        assert (labels == segmenter.predict(image).labels).mean() > 0.999


def test_a_panorama_is_seen_through_windows_and_this_is_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photo(tmp_path / "in/wide.png", (48, 300))
    assert main(["predict", str(model), str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "wide (48x300) and others like it are seen at 48x300 through 7 windows of 48x64" in said
    with Image.open(tmp_path / "out/labels/wide.png") as picture:
        assert picture.size == (300, 48)


def test_folders_and_patterns_keep_their_structure(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a/1.png", "a/b/2.JPG", "c/3.png", "a/.hidden.png", ".trash/4.png"):
        write_photo(tmp_path / "in" / name)
    (tmp_path / "in/a/notes.txt").write_text("no image")
    for out in (tmp_path / "in/out", tmp_path / "in"):  # the results may lie among the images, or beside their folders
        for new in (3, 0):
            summary = predicted(capsys, model, tmp_path / "in/a", tmp_path / "in/c/3.png", "--out", out, "--overlay")
            assert (summary["images"], summary["predicted"]) == (3, new)
        made = {file.relative_to(out).as_posix() for file in (out / "labels").rglob("*.png")}
        assert made == {f"labels/{name}" for name in ("1.png", "b/2.png", "3.png")}
    results = [tmp_path / "in/out", tmp_path / "in/labels", tmp_path / "in/overlays"]
    assert [source.name for source in find_sources([f"{tmp_path}/in"], results)] == ["a/1", "a/b/2", "c/3"]
    names = [source.name for source in find_sources([f"{tmp_path}/in/[ac]/*.png", f"{tmp_path}/in/a/b/2.JPG"])]
    assert names == ["a/1", "c/3", "2"]
    assert [source.name for source in find_sources([f"{tmp_path}/in/a/**/*.JPG"])] == ["b/2"]


def test_linked_folders_are_searched_as_a_training_searches_them(tmp_path: Path) -> None:
    write_photo(tmp_path / "elsewhere/1.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/site").symlink_to(tmp_path / "elsewhere")
    assert [source.name for source in find_sources([f"{tmp_path}/in"])] == ["site/1"]
    (tmp_path / "elsewhere/again").symlink_to(tmp_path / "in")
    with pytest.raises(InputError, match="remove the link"):
        find_sources([f"{tmp_path}/in"])


def test_labels_of_a_data_set_are_not_overwritten(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, labels = write_photo(tmp_path / "val/images/1.png"), write_photo(tmp_path / "val/labels/1.png")
    before = labels.read_bytes()
    for inputs in (photo, photo.parent, tmp_path / "val"):
        said = refused(capsys, model, inputs, "--out", tmp_path / "val", "--overlay")
        assert f"no made_by.json says what made {labels}" in said
    assert labels.read_bytes() == before
    assert not (tmp_path / "val/made_by.json").exists()


def test_a_frame_and_an_image_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_text("")
    write_photo(tmp_path / "clip/first.png")
    assert len(find_sources([str(tmp_path)])) == 2
    write_photo(tmp_path / "clip/000001.jpg")
    with pytest.raises(
        InputError, match=r"clip/000001\.jpg and a frame of .*clip\.mp4 would both become clip/000001\.png"
    ):
        find_sources([str(tmp_path)])


def test_what_names_no_image_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photo(tmp_path / "in/1.png")
    write_photo(tmp_path / "in/1.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "broken.png").write_text("no image either")
    out = ("--out", tmp_path / "out")
    said = refused(capsys, model, tmp_path / "in", *out)
    assert "1.jpg" in said
    assert "1.png" in said
    for wrong in ("empty", "notes.txt", "nothing.png", "in/*.tif"):
        assert wrong in refused(capsys, model, tmp_path / wrong, *out)
    assert not (tmp_path / "out").exists()
    assert "broken.png" in refused(capsys, model, tmp_path / "broken.png", *out)
    assert "batch_size" in refused(capsys, model, PHOTO, *out, "--batch_size", 0)


def test_a_view_that_cannot_be_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, photo = write_model(tmp_path / "model.safetensors", size=None), write_photo(tmp_path / "1.png")
    out = ("--out", tmp_path / "out")
    assert "use --view whole" in refused(capsys, model, photo, *out, "--view", "windows")
    assert predicted(capsys, model, photo, *out)["predicted"] == 1


def test_what_an_interrupted_prediction_says(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)  # comes as Ctrl-C does
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        assert main(["predict", str(model), str(PHOTO.parent), "--out", str(tmp_path / "out")]) == 130
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert "interrupted; the same command goes on with the files that are there" in capsys.readouterr().err


def test_a_stopped_run_continues(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2, 3):
        write_photo(tmp_path / f"in/{number}.png")
    whole = (tmp_path / "in/2.png").read_bytes()
    (tmp_path / "in/2.png").write_bytes(whole[:300])  # stops the run
    run = (model, tmp_path / "in", "--out", tmp_path / "out", "--batch_size", 1, "--confidence")
    assert "2.png" in refused(capsys, *run)
    (tmp_path / "in/2.png").write_bytes(whole)
    labels = tmp_path / "out/labels"
    assert [file.name for file in labels.iterdir()] == ["1.png"]
    before = (labels / "1.png").stat().st_mtime_ns
    (labels / "2.png.part").write_bytes(b"half a file")
    summary = predicted(capsys, *run)
    assert (summary["images"], summary["predicted"]) == (3, 2)
    assert (labels / "1.png").stat().st_mtime_ns == before
    assert sorted(file.name for file in labels.iterdir()) == ["1.png", "2.png", "3.png"]
    (tmp_path / "out/confidence/3.png").unlink()
    assert predicted(capsys, *run)["predicted"] == 1
    assert predicted(capsys, *run)["predicted"] == 0


def test_predictions_of_two_models_do_not_mix(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, out = write_photo(tmp_path / "1.png"), tmp_path / "out"
    predicted(capsys, model, photo, "--out", out)
    other = write_model(tmp_path / "other.safetensors", seed=1)
    assert "another model" in refused(capsys, other, photo, "--out", out)
    assert "another model" in refused(capsys, model, photo, "--out", out, "--view", "windows")
    (out / "made_by.json").write_text("{")
    assert "made_by.json: damaged" in refused(capsys, model, photo, "--out", out)


def test_orientation_of_the_camera_is_heeded(segmenter: Segmenter, tmp_path: Path) -> None:
    orientation = Image.Exif()
    orientation[0x0112] = 6  # the camera was held upright: turn clockwise to see it
    photo = write_photo(tmp_path / "1.png", exif=orientation)
    turned = np.rot90(np.array(Image.open(photo)), -1)
    expected = segmenter.predict(np.ascontiguousarray(turned)).labels
    assert expected.shape == (64, 48)
    np.testing.assert_array_equal(segmenter.predict(photo).labels, expected)
    np.testing.assert_array_equal(segmenter.predict(Image.open(photo)).labels, expected)


def test_start_is_fast_and_torch_comes_late() -> None:
    code = (
        "import sys, segadapt; from segadapt.cli import main\n"
        "for name in ('predict', 'recalibrate', 'export'):\n"
        "    try: main([name, '--help'])\n"
        "    except SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
        "from segadapt import Segmenter\n"
        "assert 'torch' in sys.modules and Segmenter.__name__ in segadapt.__all__"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    for option in ("--overlay", "--view", "--to", "--images"):
        assert option in shown.stdout


def write_video(path: Path, frames: int) -> Path:
    """A video of the photograph, moving, without loss."""
    import av

    photo = np.array(Image.open(PHOTO).resize((96, 64)))
    with av.open(str(path), "w") as video:
        stream = video.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for number in range(frames):
            pixels = np.ascontiguousarray(photo[8:56, 4 * number : 4 * number + 64])
            video.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        video.mux(stream.encode())
    return path


def test_frames_of_a_video(
    model: Path, segmenter: Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, out = write_video(tmp_path / "drive.mkv", 6), tmp_path / "out"
    assert predicted(capsys, model, video, "--out", out, "--overlay")["predicted"] == 6
    names = [f"{number:06}.png" for number in range(6)]
    assert sorted(file.name for file in (out / "labels/drive").iterdir()) == names
    frame = np.array(Image.open(PHOTO).resize((96, 64)))[8:56, 20:84]
    found = np.array(Image.open(out / "labels/drive/000005.png"))
    assert (found == segmenter.predict(np.ascontiguousarray(frame)).labels).mean() > 0.999
    (out / "labels/drive/000003.png").unlink()
    assert predicted(capsys, model, video, "--out", out)["predicted"] == 1
    (tmp_path / "text.mp4").write_text("no video")
    assert "text.mp4" in refused(capsys, model, tmp_path / "text.mp4", "--out", tmp_path / "other")


def test_frames_are_turned_upright() -> None:
    frame = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    np.testing.assert_array_equal(upright(frame, -90.0), np.rot90(frame, -1))
    np.testing.assert_array_equal(upright(frame, 0.0), frame)


def test_videos_need_an_extra_and_this_is_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "drive.mp4").write_text("")
    monkeypatch.setitem(sys.modules, "av", None)  # as if it were not installed
    assert "segadapt[video]" in refused(capsys, model, tmp_path / "drive.mp4", "--out", tmp_path / "out")
