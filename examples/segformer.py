"""SIM's matching losses, between the two rules, in a loop of your own: a Hugging Face SegFormer with random weights.

Needs transformers: pip install 'segadapt[examples]'. Images are drawn: sky, road, cars, in other colours in the target.
"""

import torch
from torch.nn.functional import cross_entropy, interpolate
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from segadapt.data.label_spaces import STREETS11 as SPACE  # yours: LabelSpace.from_yaml("classes.yaml")
from segadapt.matching import FeatureBank, correct_labels, matched, matching_losses, region_means, shrink_labels

SKY, ROAD, CAR = (SPACE.names.index(name) for name in ("sky", "road", "car"))
CHANNELS = 64


def scenes(count: int, shift: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, 64, 96) and labels (B, 64, 96) of cars between sky and road; `shift` moves the colours."""
    labels = torch.full((count, 64, 96), SKY)
    labels[:, 32:] = ROAD
    for image, left in enumerate(torch.randint(0, 20, (count,)).tolist()):
        labels[image, 36:52, left : left + 24] = labels[image, 40:60, left + 44 : left + 72] = CAR
    colours = torch.rand(SPACE.num_classes, 3, generator=torch.Generator().manual_seed(1)) + shift
    return colours[labels].permute(0, 3, 1, 2) + 0.1 * torch.randn(count, 3, 64, 96), labels


def forward(model: torch.nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (B, C, h, w) of the third stage, logits at the images' size, predicted classes (B, h, w)."""
    output = model(images, output_hidden_states=True)
    logits = interpolate(output.logits, images.shape[-2:], mode="bilinear", align_corners=True)
    return output.hidden_states[2], logits, shrink_labels(logits.argmax(1), output.hidden_states[2].shape[-2:])


def main(steps: int = 30) -> tuple[SegformerForSemanticSegmentation, FeatureBank]:
    """Train for some steps; the model and its bank."""
    torch.manual_seed(0)
    config = SegformerConfig(depths=[1] * 4, hidden_sizes=[16, 32, CHANNELS, 64], num_labels=SPACE.num_classes)
    model = SegformerForSemanticSegmentation(config)
    bank = FeatureBank(SPACE, CHANNELS)
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    for step in range(steps):
        (images, labels), (target, _) = scenes(4, 0.0), scenes(4, 0.2)
        features, logits, predicted = forward(model, images)
        loss = cross_entropy(logits, labels)
        # ---- what SIM adds
        bank.store(region_means(features, correct_labels(predicted, shrink_labels(labels, predicted.shape[1:])), SPACE))
        target_features, _, target_predicted = forward(model, target)
        regions = region_means(target_features, target_predicted, SPACE)
        matching, count = sum(matching_losses(regions, bank)), matched(regions, bank).sum()
        # ----
        (loss + 0.01 * matching).backward()
        optimiser.step()
        optimiser.zero_grad()
        print(f"{step}: segmentation {loss:.3f}, matching {matching:.3f}, {count}/{len(regions)} regions matched")
    return model, bank


if __name__ == "__main__":
    main()
