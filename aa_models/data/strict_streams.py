"""Streams of pictures, none of which is left out without a word: what cannot be read is an error by its name.

timm's reader of WebDatasets passes over what it cannot read, and takes more of the others where a number of pictures is
due.
"""
import copy
import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from timm.data import IterableImageDataset

from aa_models.errors import InputError

from .pictures import BROKEN, as_shown
from .strict_images import ADVICE, BrokenPictureError, decode

_END_OF_TAR = bytes(1024)  # two empty blocks
_COMPRESSED = ('.gz', '.bz2', '.xz', '.zst')


class StrictStream(IterableImageDataset):
    """timm's stream, but for pictures that cannot be read.

    Args:
        dataset: As timm opened it.

    Raises:
        BrokenPictureError: A file of it is cut; when it is read, also a picture that cannot be.
    """

    def __init__(self, dataset: IterableImageDataset) -> None:
        super().__init__(
            None, dataset.reader, transform=dataset.transform, target_transform=dataset.target_transform)
        self.left_out: set[tuple[str, str]] = set()  # file and key of each picture that is known to be broken
        self.faults: dict[tuple[str, str], str] | None = None  # what is wrong with each, where that is to be found out
        self.mode: str | None = None
        if self.is_wds or type(self.reader).__name__ == 'ReaderHfids':
            self.mode, self.reader.input_img_mode = self.reader.input_img_mode, None  # `decode` knows more of greys
        if self.is_wds:
            for path in shards_of(self.reader):
                _check_end(path)

    @property
    def is_wds(self) -> bool:
        """Whether it is a WebDataset, of which each picture has a name."""
        return type(self.reader).__name__ == 'ReaderWds'

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        if self.is_wds and self.reader.ds is None:  # made in the process that reads
            self.reader._lazy_init()
            _make_strict(self.reader.ds, self._decoded, shards_of(self.reader))
        for picture, target in self._samples():
            picture = picture if self.transform is None else self.transform(picture)
            yield picture, target if self.target_transform is None else self.target_transform(target)

    def _samples(self) -> Iterator[tuple[Any, Any]]:
        """Pictures with their labels; a picture without a name is named by how many came before it."""
        samples = iter(self.reader)
        for count in itertools.count():
            try:
                picture, target = next(samples)
            except StopIteration:
                return
            except BROKEN as error:
                if isinstance(error, BrokenPictureError):
                    raise
                raise BrokenPictureError(
                    f'after {count} pictures of the stream comes what cannot be read: {_reason(error)}') from error
            if self.mode and not self.is_wds:
                picture = decode(picture, f'picture {count} of the stream', self.mode)
            yield picture, target

    def _decoded(self, function: Callable[[Any], Any], sample: Any) -> Any:
        """What timm's function makes of a sample of a WebDataset, None for one to leave out."""
        name = sample['__url__'], sample['__key__']
        if name in self.left_out:
            return None
        try:
            result = function(sample)
            if result is not None:  # as for a label that says to pass over it
                result['jpg'] = as_shown(result['jpg'], self.mode or 'RGB')
            return result
        except Exception as error:  # a label or a name that is wrong fails in as many ways as a picture
            reason = f'it has no {error}' if isinstance(error, KeyError) else _reason(error)
            fault = f'{name[1]} in {name[0]} cannot be read as a picture with its label: {reason}'
            if self.faults is None:
                raise BrokenPictureError(fault + ADVICE) from error
            self.faults[name] = fault
            return None


def broken_of_stream(dataset: StrictStream) -> tuple[list[str], int]:
    """Have a stream leave out the pictures that cannot be read; each is read once.

    Returns:
        What is wrong with each, and the number of all.

    Raises:
        InputError: Its pictures have no names.
        BrokenPictureError: A file of it is broken.
    """
    if not dataset.is_wds:
        raise InputError(
            'skip_broken needs a folder of pictures, wds/… or hfds/…: of other streams each picture counts')
    whole = copy.copy(dataset)
    whole.reader, whole.transform, whole.target_transform, whole.faults = copy.copy(dataset.reader), None, None, {}
    for name, value in dict(ds=None, is_training=False, dist_rank=0, dist_num_replicas=1, num_workers=1).items():
        setattr(whole.reader, name, value)
    read = sum(1 for _ in whole)
    dataset.left_out = set(whole.faults)
    dataset.reader.num_samples = max(0, dataset.reader.num_samples - len(whole.faults))
    return list(whole.faults.values()), read + len(whole.faults)


def shards_of(reader: Any) -> list[str]:
    """The files of a WebDataset."""
    return [os.path.join(reader.root, name) for name in reader.split_info.filenames]


def _check_end(path: str) -> None:
    """Refuse a tar that was cut where a picture ends: what is missing looks like its end to who reads on."""
    if not os.path.isfile(path) or path.endswith(_COMPRESSED):
        return
    with open(path, 'rb') as file:
        file.seek(-min(len(_END_OF_TAR), os.path.getsize(path)), os.SEEK_END)
        if file.read() != _END_OF_TAR:
            raise BrokenPictureError(f'{path} does not end as a tar does: a part of it is missing')


def _make_strict(pipeline: Any, decoded: Callable[[Callable[[Any], Any], Any], Any], shards: list[str]) -> None:
    """Have the stages of a WebDataset's pipeline pass over nothing, and decode by `decoded`."""
    stages = [stage for stage in pipeline.pipeline if 'handler' in getattr(stage, 'kw', {})]
    if len(stages) != 2 or not stages[1].args:
        raise RuntimeError(
            f"timm's pipeline of a WebDataset has {len(stages)} stages that may pass over samples, not 2")
    for stage in stages:
        stage.kw['handler'] = partial(_refuse, shards=shards)
    function, *others = stages[1].args
    stages[1].args = (lambda sample: decoded(function, sample), *others)


def _refuse(error: Exception, shards: list[str]) -> bool:
    """What WebDataset calls for an error; last of its arguments is the file, once it is known."""
    if isinstance(error, BrokenPictureError) or error.args[-1:] == (None,) or len(error.args) < 2:
        raise error
    if error.args[-1] in shards:
        raise BrokenPictureError(f'{error.args[-1]} cannot be read: {_reason(error)}') from error
    raise error


def _reason(error: Exception) -> str:
    """What an error says, without what WebDataset adds to it."""
    first, *others = error.args or (type(error).__name__,)
    words = first if isinstance(first, str) else others[0] if others else first  # a system's error begins with a number
    return ' '.join(str(words).partition(' @ ')[0].split())
