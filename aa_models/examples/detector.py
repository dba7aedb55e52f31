"""A detector of torchvision on a pretrained augmented ResNet, fine-tuned for a few steps on generated boxes.

    python -m aa_models.examples.detector
"""
import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import box_iou
from torchvision.transforms.functional import to_tensor

import aa_models  # noqa: F401, registers the models

from .shapes import SHAPES, SIZE, draw_with_mask

Target = dict[str, torch.Tensor]


def make_detector(name: str = 'aa_resnet18', pretrained: bool = True) -> nn.Module:
    """FCOS that finds figures, on features at strides of 8, 16 and 32 pixels."""
    body: Any = timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=(2, 3, 4))
    layers = {module: str(i) for i, module in enumerate(body.feature_info.module_name())}
    backbone = BackboneWithFPN(body, layers, body.feature_info.channels(), out_channels=64)
    anchors = AnchorGenerator(sizes=((8,), (16,), (32,), (64,)), aspect_ratios=((1.,),) * 4)  # the pyramid adds a level
    return FCOS(backbone, num_classes=2, anchor_generator=anchors, min_size=SIZE[0], max_size=SIZE[1])


def pictures(count: int, seed: int) -> tuple[list[torch.Tensor], list[Target]]:
    """Pictures of one figure each, and its box: left, top, right, bottom."""
    random = np.random.default_rng(seed)
    images, targets = [], []
    for shape in random.choice(list(SHAPES), count):
        image, mask = draw_with_mask(str(shape), random)
        images.append(to_tensor(image))
        targets.append(dict(boxes=torch.tensor([mask.getbbox()], dtype=torch.float32), labels=torch.tensor([1])))
    return images, targets


def fine_tune(detector: nn.Module, steps: int, batch: int = 8) -> list[float]:
    """Train on pictures that are all new; returns the loss of each step."""
    optimizer = torch.optim.AdamW(detector.train().parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        loss = sum(detector(*pictures(batch, seed=1000 + step)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.inference_mode()
def overlap(detector: nn.Module, count: int = 40) -> float:
    """How much of the true box the most confident one covers, as intersection over union, on unseen pictures."""
    images, targets = pictures(count, seed=0)
    found = [answer['boxes'][:1] for answer in detector.eval()(images)]
    return float(np.mean([box_iou(box, t['boxes']).sum().item() for box, t in zip(found, targets)]))


def main(words: Sequence[str] | None = None) -> None:
    """Fine-tune and print what came of it."""
    parser = argparse.ArgumentParser(description='Fine-tune a detector on generated boxes.')
    parser.add_argument('--steps', type=int, default=40, help='of 8 pictures (default: %(default)s)')
    args = parser.parse_args(words)
    if args.steps < 1:
        parser.error(f'--steps must be at least 1, not {args.steps}')
    torch.manual_seed(0)
    detector = make_detector()
    losses = fine_tune(detector, args.steps)
    print(f'loss {losses[0]:.2f}, at the end {losses[-1]:.2f}; boxes overlap by {100 * overlap(detector):.0f} %')


if __name__ == '__main__':
    main()
