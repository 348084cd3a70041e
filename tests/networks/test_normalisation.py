import pytest
import torch

from segadapt.networks.normalisation import CAFFE_BGR, CENTRED_RGB, IMAGENET_RGB, Normalisation

RED = torch.tensor([255, 100, 0], dtype=torch.uint8).view(1, 3, 1, 1)


@pytest.mark.parametrize(
    ("normalisation", "expected"),
    [
        (IMAGENET_RGB, [(1 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224, (0 - 0.406) / 0.225]),
        (CAFFE_BGR, [0 - 104.00698793, 100 - 116.66876762, 255 - 122.67891434]),
        (CENTRED_RGB, [(255 - 127) / 128, (100 - 127) / 128, (0 - 127) / 128]),
    ],
)
def test_colours(normalisation, expected):
    values = normalisation(RED)
    assert values.dtype == torch.float32
    assert values.flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_images_are_left_as_they_are():
    images = RED.clone()
    IMAGENET_RGB(images)
    assert torch.equal(images, RED)


def test_an_evaluation_that_comes_first_leaves_a_training_its_gradient() -> None:
    once = Normalisation(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), bgr=False)  # of no other test, which would keep it
    with torch.inference_mode():
        once(torch.zeros(1, 3, 2, 2))
    images = torch.zeros(1, 3, 2, 2, requires_grad=True)
    once(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.flatten(2)[0, :, 0].tolist() == pytest.approx([-2 * 1 / 16, -2 * 2 / 25, -2 * 3 / 36])
