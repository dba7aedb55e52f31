"""Splits that timm would take for something else: it looks for what it does not find in the whole of a dataset."""
import os

_TRAIN = ('train', 'training')  # timm's words for the two parts, each of which finds a folder of any other
_EVAL = ('val', 'valid', 'validation', 'eval', 'evaluation')
_TEST = ('test', 'testing')
_TWO_PARTS = ('cifar10', 'cifar100', 'mnist', 'kmnist', 'fashion_mnist', 'qmnist')  # of torchvision
FOLDERS = ('torch/image_folder', 'torch/folder')  # torchvision's readers of class folders


def split_fault(name: str, root: str | None, split: str) -> str | None:
    """Why a dataset has no such split, where timm would go on without a word: with other pictures than were meant.

    Args:
        name: Of the dataset, in timm's notation.
        root: Where it is.
        split: The split that is asked for.

    Returns:
        What is wrong and what is possible, or None: where the split is there, or timm itself would find the fault.
    """
    prefix, _, part = name.lower().partition('/')
    if prefix == 'torch' and part in _TWO_PARTS:
        possible = (*_TRAIN, *_EVAL, *_TEST)
        return None if split in possible else f'possible are {", ".join(possible)}'
    if root is None or not os.path.isdir(root) or ('/' in name and name.lower() not in FOLDERS):
        return None
    if '[' in split:
        return 'a folder has no slices; --train-images N or --holdout N take a part of it'
    words = next((words for words in (_TRAIN, _EVAL) if split in words), (split,))
    if any(os.path.exists(os.path.join(root, word)) for word in words):
        return None
    there = [word for word in (*_TRAIN, *_EVAL, *_TEST) if _has_folders(os.path.join(root, word))]
    # what is left to validate on beside the training pictures alone is some of these
    if not there or (words == _EVAL and set(there) <= set(_TRAIN)):
        return None
    missing, found = (joint.join(f'{word}/' for word in part) for joint, part in ((' or ', words), (', ', there)))
    return f'there is no folder {missing}, but {found}'


def _has_folders(path: str) -> bool:
    """Whether a folder holds others, as one of class folders does and one of pictures does not."""
    return os.path.isdir(path) and any(entry.is_dir() for entry in os.scandir(path))
