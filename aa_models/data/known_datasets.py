"""What is known of a dataset beside its images: its name, its classes, and what a model card has to say of it."""
from collections.abc import Sequence
from typing import NamedTuple

from .cifar10 import CIFAR10_LABELS
from .cifar100 import CIFAR100_LABELS
from .imagenet import IMAGENET_LABELS
from .tiny_imagenet import TINY_IMAGENET_LABELS


class KnownDataset(NamedTuple):
    """Facts about a dataset."""
    title: str
    hub_name: str | None  # its identifier on the Hub
    about: str  # origin and terms of use, a paragraph
    labels: tuple[str, ...] = ()  # names of the classes in the order of the outputs


_CIFAR100 = KnownDataset(
    'CIFAR-100', 'uoft-cs/cifar100',
    '[CIFAR-100](https://www.cs.toronto.edu/~kriz/cifar.html) has 100 classes of 32 × 32 px colour photographs, '
    '500 for training and 100 for testing each, collected from the web. Its authors state no licence; it is in use '
    'for research. The split called validation here is its 10,000 test images.', CIFAR100_LABELS)

_CIFAR10 = KnownDataset(
    'CIFAR-10', 'uoft-cs/cifar10',
    '[CIFAR-10](https://www.cs.toronto.edu/~kriz/cifar.html) has 10 classes of 32 × 32 px colour photographs, 5,000 '
    'for training and 1,000 for testing each, collected from the web. Its authors state no licence; it is in use for '
    'research. The split called validation here is its 10,000 test images.', CIFAR10_LABELS)

_TINY_IMAGENET = KnownDataset(
    'Tiny-ImageNet', 'zh-plus/tiny-imagenet',
    'Tiny-ImageNet has 200 of the classes of [ImageNet](https://www.image-net.org/), reduced to 64 × 64 px: 500 '
    'photographs for training and 50 for validation each. ImageNet does not own the photographs, which were collected '
    'from the web; it gives access to them for non-commercial research and education only, under '
    '[its terms](https://www.image-net.org/download.php). Read them before you use these weights for anything else. '
    'Some of the photographs show people who were not asked, and the choice of classes and pictures is biased.',
    tuple(TINY_IMAGENET_LABELS))

_IMAGENET = KnownDataset(
    'ImageNet', 'ILSVRC/imagenet-1k',
    'The thousand classes are those of [ImageNet](https://www.image-net.org/), the ILSVRC of 2012. ImageNet does not '
    'own its photographs, which were collected from the web; it gives access to them for non-commercial research and '
    'education only, under [its terms](https://www.image-net.org/download.php). Read them before you use these weights '
    'for anything else. Some of the photographs show people who were not asked, and the choice of classes and pictures '
    'is biased.', tuple(IMAGENET_LABELS))

_BY_NAME = {'torch/cifar10': _CIFAR10, 'torch/cifar100': _CIFAR100}

_UNKNOWN = (
    'Nothing is recorded here about the origin and the licence of the images. Add it before this model goes to others.')


def known_dataset(name: str, classes: Sequence[str] | None = None) -> KnownDataset:
    """Find a dataset by its name or, where it is just a folder, by its classes.

    Args:
        name: In timm's notation, `''` for a folder.
        classes: Names of the classes, where the images have them.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    for dataset in (_TINY_IMAGENET, _IMAGENET):
        if not name and tuple(classes or ()) == dataset.labels:
            return dataset
    kind, _, rest = name.partition('/')
    return KnownDataset(rest or 'a private folder of images', rest if kind == 'hfds' and rest else None, _UNKNOWN)
