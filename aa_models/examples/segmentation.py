"""Segmentation with segmentation-models-pytorch: an augmented encoder beside the plain one, on generated pictures.

A picture holds one of eight figures on a striped background under noise, and each pixel is to be told to which of the
two it belongs. Both U-Nets start from random weights and see the same pictures.

    python -m aa_models.examples.segmentation
"""
import argparse
from collections.abc import Sequence

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import nn

import aa_models  # noqa: F401, registers the models

from .shapes import SHAPES, draw_with_mask

SIZE = 48, 96  # of the pictures, pixels
ENCODERS = 'tu-resnet18', 'tu-aa_resnet18'


def pictures(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (count, 3, H, W) and for each of their pixels (count, H, W) 1 in the figure, 0 around it."""
    random = np.random.default_rng(seed)
    images, masks = [], []
    for shape in random.choice(list(SHAPES), count):
        image, mask = (picture.resize(SIZE[::-1]) for picture in draw_with_mask(str(shape), random))
        images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1)
        masks.append((torch.from_numpy(np.array(mask)) > 127).long())
    return torch.stack(images), torch.stack(masks)


def train(encoder: str, steps: int, seed: int = 0, batch: int = 16) -> nn.Module:
    """A U-Net with random weights, trained on pictures that are all new."""
    torch.manual_seed(seed)
    model = smp.Unet(encoder, encoder_weights=None, classes=2, decoder_channels=(64, 48, 32, 16, 16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        images, masks = pictures(batch, seed=1000 + step)
        loss = F.cross_entropy(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def mean_iou(model: nn.Module, count: int = 80) -> float:
    """Intersection over union on unseen pictures, the mean of figure and background."""
    images, masks = pictures(count, seed=0)
    found = torch.cat([model(part).argmax(1) for part in images.split(16)])
    counts = smp.metrics.get_stats(found, masks, mode='multiclass', num_classes=2)
    tp, fp, fn, _ = (count.sum(0).double() for count in counts)
    return (tp / (tp + fp + fn)).mean().item()


def main(words: Sequence[str] | None = None) -> None:
    """Train both and print what they reach."""
    parser = argparse.ArgumentParser(description='Segmentation with a plain and an augmented encoder.')
    parser.add_argument('--steps', type=int, default=120, help='of 16 pictures (default: %(default)s)')
    args = parser.parse_args(words)
    for encoder in ENCODERS:
        print(f'{encoder}: mean IoU {100 * mean_iou(train(encoder, args.steps)):.1f} %', flush=True)


if __name__ == '__main__':
    main()
