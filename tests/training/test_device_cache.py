"""Training pictures on the device: changed as the ordinary loader changes them, and by the same numbers every time."""
import collections
import shutil
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from aa_models.training.checkpoints import newest_whole
from aa_models.training.datasets import open_dataset
from aa_models.training.device_cache import CachedLoader
from aa_models.training.loaders import RandomShift, make_train_loader
from aa_models.training.recipe import Recipe
from interruptions import lose_epochs
from training_runs import RECIPE, assert_same_run, make_pictures, run_training

CPU = torch.device('cpu')
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
VALUES = dict(crop_padding=2, hflip=0.3, device_cache=True)


def make_loader(dataset, size=18, **values):
    config = dict(input_size=(3, size, size), interpolation='bicubic', mean=MEAN, std=STD)
    return make_train_loader(dataset, Recipe(**{**RECIPE, **VALUES, **values}), config, CPU, False)


def pixels(images):
    """Normalised (B, 3, H, W) -> uint8 (B, H, W, 3)."""
    x = images * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)
    assert (255 * x - (255 * x).round()).abs().max() < 1e-3
    return (255 * x).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def possible(picture, size, most):
    """All that the ordinary transform can make of a picture, by its bytes: (shift down, shift right, flipped)."""
    found = {}
    for down in range(-most, most + 1):
        for right in range(-most, most + 1):
            with mock.patch('random.randint', side_effect=[down, right]):
                shifted = RandomShift(most)(picture)
            shifted = transforms.CenterCrop(size)(transforms.Resize(size)(shifted))
            for flipped in (False, True):
                image = shifted.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else shifted
                found[np.asarray(image).tobytes()] = down, right, flipped
    return found


def test_pictures_are_shifted_and_flipped_as_by_the_ordinary_loader(data):
    dataset = open_dataset('', str(data), 'train')
    pictures = [dataset[i] for i in range(len(dataset))]
    known = {}
    for number, (picture, _) in enumerate(pictures):
        known |= {content: (number, how) for content, how in possible(picture, 18, 2).items()}
    loader = make_loader(dataset)
    assert isinstance(loader, CachedLoader) and len(loader) == 3
    torch.manual_seed(0)
    seen = collections.Counter()
    for _ in range(60):
        numbers = []
        for images, labels in loader:
            assert images.shape == (8, 3, 18, 18) and images.dtype == torch.float32
            for image, label in zip(pixels(images), labels):
                number, how = known[image.tobytes()]
                assert label == pictures[number][1]
                numbers.append(number)
                seen[how] += 1
        assert sorted(numbers) == list(range(24))  # each once an epoch
    total = sum(seen.values())
    assert len(seen) == 5 * 5 * 2 and total == 60 * 24
    for flipped, share in ((False, 0.7), (True, 0.3)):
        counts = [count for how, count in seen.items() if how[2] == flipped]
        assert sum(counts) / total == pytest.approx(share, abs=0.04)  # three standard deviations
        assert max(counts) < share * total / 25 * 1.8


def test_resized_as_by_the_ordinary_loader(data):
    values = dict(crop_padding=1, hflip=0.0, batch_size=24, train_img_size={0: 9, 1: 27})
    cached, ordinary = (
        make_loader(open_dataset('', str(data), 'train'), **values, device_cache=cache) for cache in (True, False))
    for epoch, size in enumerate((9, 27)):
        cached.set_epoch(epoch)
        ordinary.dataset.transform.set_epoch(epoch)
        with mock.patch('random.randint', return_value=-1):
            expected = np.stack([np.asarray(ordinary.dataset[i][0]).transpose(1, 2, 0) for i in range(24)]).astype(int)
        with mock.patch('torch.randint', lambda low, high, size: torch.full(size, -1)):
            found = pixels(cached._changed(torch.arange(24)))
        assert found.shape == (24, size, size, 3)
        off = np.abs(found - expected)  # of 255: the libraries round, and cut off what is below 0, in other places
        assert (off <= 2).mean() > 0.99 and off.max() < 16


def test_a_run_goes_on_exactly(tmp_path, data):
    values = dict(VALUES, epochs=3, train_img_size={1: 12, 2: 16}, mixup=0.2)
    unbroken = run_training(tmp_path / 'unbroken', data, **values)
    output = shutil.copytree(unbroken, tmp_path / 'out')
    lose_epochs(output, first=2)
    assert newest_whole(output)
    run_training(output, data, **values)
    assert_same_run(output, unbroken)


@pytest.mark.parametrize('values, message', [
    (dict(color_jitter=0.4), 'device_cache shifts and flips only, and color_jitter = 0.4: possible is 0'),
    (dict(auto_augment='ta_wide'), "auto_augment = 'ta_wide': possible is none"),
    (dict(re_prob=0.2), 're_prob = 0.2: possible is 0'),
    (dict(crop_padding=0, scale=[0.5, 1.0]), 'device_cache crops by crop_padding only'),
    (dict(input_size=[3, 16, 24], img_size=None, crop_padding=0), 'device_cache needs a square input'),
    (dict(crop_padding=0), 'without crop_padding needs square pictures, not of 20 × 18 px'),
    (dict(interpolation='lanczos'), "not 'lanczos'"),
    (dict(crop_padding=18), r'crop_padding = 18 needs pictures larger than that, not \(20, 18\)'),
    (dict(batch_size=64), '24 training images do not fill one batch'),
])
def test_what_a_cache_cannot_do_is_refused(tmp_path, data, values, message):
    with pytest.raises(ValueError, match=message):
        run_training(tmp_path / 'out', data, **{**VALUES, **values})
    assert not (tmp_path / 'out').exists()


def test_pictures_of_several_sizes_and_too_many_are_refused(tmp_path, data, monkeypatch):
    with monkeypatch.context() as limit:
        limit.setenv('AA_MODELS_MAX_GB', '1e-5')
        with pytest.raises(ValueError, match='device_cache of 24 pictures of 20 × 18 px would take at least'):
            make_loader(open_dataset('', str(data), 'train'))
    mixed = make_pictures(tmp_path / 'mixed')
    Image.new('RGB', (30, 24)).save(mixed / 'train' / 'class1' / '3.png')
    with pytest.raises(ValueError, match='one size: there are 20 × 18 px and, with 3 channels, 30 × 24 px'):
        make_loader(open_dataset('', str(mixed), 'train'))
