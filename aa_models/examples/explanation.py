"""Two explanations of one answer, side by side: Grad-CAM's and the network's own attention.

Grad-CAM shows which places speak for the class; the attention shows which places the brightest of them looks at.

    python -m aa_models.examples.explanation tests/photographs/espresso.jpg explanation.png
"""
import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from matplotlib.figure import Figure
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

import aa_models  # noqa: F401, registers the models
from aa_models.analysis.figures import draw
from aa_models.analysis.prediction import make_transform
from aa_models.analysis.queries import attention_from
from aa_models.data.labels import class_description


def evidence(model: nn.Module, x: torch.Tensor, target: int, layer: nn.Module) -> torch.Tensor:
    """Grad-CAM of a class at a layer: (H, W) of the input x (1, 3, H, W), from 0 to 1."""
    with GradCAM(model, [layer]) as cam:
        return torch.from_numpy(cam(x, [ClassifierOutputTarget(target)])[0])


def explain(name: str, picture: Image.Image) -> Figure:
    """Draw a picture as the network sees it, what speaks for the first guess, and where the best place looks.

    Args:
        name: A ResNet of this package, with weights.
        picture: Any picture; it is resized, not cropped.
    """
    model: Any = timm.create_model(name, pretrained=True).eval()
    cfg = model.pretrained_cfg
    seen = picture.convert('RGB').resize(cfg['input_size'][:0:-1])
    x = make_transform(model, crop_pct=1., crop_mode='squash')(seen)[None]
    with torch.no_grad():
        probability, guess = (value.item() for value in model(x).softmax(1).max(1))
    heat = evidence(model, x, int(guess), model.layer4)
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    layer, heads = next(iter(attention_from(model, seen, (column, row)).items()))
    panels = {
        'Grad-CAM, layer4': heat / heat.sum(),  # like attention a share of the whole
        f'attention, {layer.removesuffix(".attn")}': heads.mean(0)}
    text = class_description(cfg, int(guess)) or f'class {guess}'
    return draw(seen, (column, row), panels, f'{name}: {text.split(",")[0]}, {probability:.0%}')


def main(argv: Sequence[str] | None = None) -> None:
    """Explain one picture and write the result."""
    parser = argparse.ArgumentParser(description='Explain the answer to one picture.')
    parser.add_argument('picture', type=Path)
    parser.add_argument('output', type=Path, help='the drawing, .png')
    args = parser.parse_args(argv)
    with Image.open(args.picture) as image:
        explain('aa_resnet18.tiny_in', image).savefig(args.output, dpi=150)


if __name__ == '__main__':
    main()
