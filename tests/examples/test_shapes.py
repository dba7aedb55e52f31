"""The pictures to fine-tune on: outlines are those of their names, stand out, and are the same for the same seed."""
import math

import numpy as np
import pytest

from aa_models.examples import shapes
from aa_models.training.datasets import class_names, open_dataset
from command import refused


def outline(shape):
    return np.stack([shapes.SHAPES[shape].real, shapes.SHAPES[shape].imag], axis=1)


@pytest.mark.parametrize(
    'shape, corners', [('triangle', 3), ('square', 4), ('pentagon', 5), ('hexagon', 6), ('circle', 48)])
def test_regular_outlines(shape, corners):
    points = outline(shape)
    sides = np.linalg.norm(points - np.roll(points, 1, 0), axis=1)
    assert len(points) == corners and np.allclose(np.linalg.norm(points, axis=1), 1)
    assert np.allclose(sides, 2 * math.sin(math.pi / corners))


@pytest.mark.parametrize('shape, turns, dents', [('star', 5, 5), ('cross', 4, 4)])
def test_outlines_with_dents(shape, turns, dents):
    """The same after a part of a full turn; as many corners bend inwards."""
    points = outline(shape)
    angle = 2 * math.pi / turns
    turned = points @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    assert np.allclose(np.linalg.norm(turned[:, None] - points, axis=2).min(1), 0, atol=1e-9)
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    bends = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    assert min((bends < 0).sum(), (bends > 0).sum()) == dents


def test_crescent_is_a_disc_without_another():
    points = outline('crescent')
    from_other = np.linalg.norm(points - [0.35, 0], axis=1)
    assert (from_other > 0.7).all() and np.isclose(from_other[-40:], 0.75).all()
    assert np.isclose(np.linalg.norm(points[:40], axis=1), 1).all()


@pytest.mark.parametrize('shape', shapes.SHAPES)
def test_drawn_to_be_seen(shape, monkeypatch):
    """Without noise and stripes the outline is the only other colour, far from the background's."""
    random = np.random.default_rng(0)
    monkeypatch.setattr(shapes, 'STRIPES', 0)
    monkeypatch.setattr(shapes, 'NOISE', 0)
    for _ in range(20):
        pixels = np.asarray(shapes.draw(shape, random)).astype(int)
        colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
        assert pixels.shape == (80, 160, 3) and len(colours) == 2 and counts.min() > 50
        assert abs(colours[0] - colours[1]).max() > 75


def write(folder, seed):
    """The written files by their path in the folder."""
    assert shapes.main([str(folder), '--train', '2', '--validation', '1', '--seed', str(seed)]) == 0
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*.png')}


def test_folder(tmp_path):
    one, two, three = (write(tmp_path / name, seed) for name, seed in (('one', 0), ('two', 0), ('three', 1)))
    assert one == two and one.keys() == three.keys() and not set(one.values()) & set(three.values())
    assert len(set(one.values())) == 8 * 3
    train = open_dataset('', str(tmp_path / 'one'), 'train')
    assert len(train) == 16 and class_names(train) == sorted(shapes.SHAPES)
    assert len(open_dataset('', str(tmp_path / 'one'), 'validation')) == 8


@pytest.mark.parametrize('words, error', [
    (['--train', '0'], 'train and validation must be at least 1, not 0 and 125'),
    (['--seed', '-1'], 'seed must be at least 0, not -1'),
    ([], 'exists and is not empty: choose another'),
])
def test_bad_options(tmp_path, capsys, words, error):
    (tmp_path / 'mine.txt').touch()
    assert error in refused(capsys, tmp_path, *words, main=shapes.main)
    assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']
