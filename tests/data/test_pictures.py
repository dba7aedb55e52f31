"""Reading pictures: which files of a folder, and any mode as a viewer shows it."""
import io
import math

import numpy as np
import pytest
from PIL import Image

from aa_models import errors
from aa_models.data.cifar100 import CIFAR100_LABELS
from aa_models.data.pictures import find_pictures, read_picture
from aa_models.data.strict_images import decode
from repository import TESTS

PICTURES = TESTS / 'pictures'


def test_folder_takes_only_pictures_and_looks_below(tmp_path):
    (tmp_path / 'below').mkdir()
    with pytest.raises(errors.InputError, match=f'{tmp_path} contains no picture'):
        find_pictures([tmp_path])
    for name in ['b.JPG', 'a.png', 'below/c.webp', '.hidden.png', 'notes.txt', 'film.mpg']:
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in find_pictures([tmp_path])] == ['a.png', 'b.JPG', 'below/c.webp']


def test_folder_looks_through_links(tmp_path):
    """As training does, and not in a circle."""
    for name in ('elsewhere/deep', 'here'):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / 'elsewhere' / 'deep' / 'a.png').touch()
    (tmp_path / 'here' / 'link').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere' / 'deep' / 'back').symlink_to(tmp_path / 'here')
    assert find_pictures([tmp_path / 'here']) == [tmp_path / 'here' / 'link' / 'deep' / 'a.png']


def pixel(picture, format='PNG', **options):
    """The first pixel of a picture after it has been stored and read."""
    stored = io.BytesIO()
    picture.save(stored, format, **options)
    return read_picture(stored).getpixel((0, 0))


def test_modes():
    size = (4, 2)
    assert pixel(Image.new('RGB', size, (10, 20, 30))) == (10, 20, 30)
    assert pixel(Image.new('L', size, 77)) == (77, 77, 77)
    assert pixel(Image.new('1', size, 1)) == (255, 255, 255)
    assert pixel(Image.new('RGB', size, (10, 20, 30)).quantize(2)) == (10, 20, 30)
    assert pixel(Image.new('RGBA', size, (10, 20, 30, 0))) == (255, 255, 255)
    assert pixel(Image.new('RGBA', size, (10, 20, 30, 255))) == (10, 20, 30)
    assert pixel(Image.new('LA', size, (10, 0))) == (255, 255, 255)
    assert pixel(Image.new('RGB', size, (10, 20, 30)), transparency=(10, 20, 30)) == (255, 255, 255)
    assert pixel(Image.new('I;16', size, 257 * 128)) == (128, 128, 128)
    assert pixel(Image.new('I;16', size, 65535), 'TIFF') == (255, 255, 255)
    assert pixel(Image.new('CMYK', size, (0, 0, 0, 255)), 'TIFF') == (0, 0, 0)
    assert pixel(Image.new('RGB', size, (10, 20, 30)), 'BMP') == (10, 20, 30)
    assert pixel(Image.new('RGB', size, (10, 20, 30)), 'WEBP', lossless=True) == (10, 20, 30)
    assert pixel(Image.new('L', size, 9), 'GIF', save_all=True, append_images=[Image.new('L', size, 99)]) == (9, 9, 9)


@pytest.mark.parametrize('kind, values, expected', [
    ('float32', [0, 0.5, 1], [0, 128, 255]), ('float32', [0, 50, 255], [0, 50, 255]),
    ('int32', [0, 50, 255], [0, 50, 255]), ('int32', [0, 257 * 128, 65535], [0, 128, 255]),
    ('uint16', [0, 257, 514], [0, 1, 2]),
    ('float32', [0, 1, 255.5], None), ('float32', [-0.5, 0, 0.5], None), ('float32', [0, math.nan, 1], None),
    ('float32', [0, 1, math.inf], None), ('int32', [-1, 0, 255], None), ('int32', [0, 1, 65536], None),
])
def test_ranges_of_grey_values(kind, values, expected):
    stored = io.BytesIO()
    Image.fromarray(np.array([values], kind)).save(stored, 'TIFF')
    if expected is None:
        with pytest.raises(errors.InputError, match='its grey values go from'):
            read_picture(stored)
    else:
        assert [read_picture(stored).getpixel((x, 0)) for x in range(3)] == [(grey,) * 3 for grey in expected]


def test_turned_picture():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    stored = io.BytesIO()
    Image.new('RGB', (4, 2)).save(stored, 'JPEG', exif=exif)
    assert read_picture(stored).size == (2, 4)


@pytest.mark.filterwarnings('ignore:Corrupt EXIF data')
def test_notes_that_cannot_be_read_do_not_spoil_a_picture():
    stored = io.BytesIO()
    Image.new('RGB', (4, 2)).save(stored, 'JPEG', exif=b'Exif\0\0II*\0 and no more of them')
    assert read_picture(stored).size == (4, 2)


def test_a_transparent_value_among_16_bits_of_grey():
    stored = io.BytesIO()
    Image.fromarray(np.array([[0, 257 * 100, 257 * 200]], 'uint16')).save(stored, 'PNG', transparency=257 * 100)
    assert [read_picture(stored).getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (255,) * 3, (200,) * 3]


def test_training_reads_pictures_as_they_are_shown(tmp_path):
    """Upright and on white, like those that the network will be asked about."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGBA', (4, 2), (10, 20, 30, 0)).save(tmp_path / 'a.png', exif=exif)
    for mode in ('RGB', 'L'):
        read, decoded = read_picture(tmp_path / 'a.png', mode), decode(tmp_path / 'a.png', 'a.png', mode)
        assert decoded.mode == mode and decoded.size == (2, 4) and decoded.tobytes() == read.tobytes()
        assert set(decoded.tobytes()) == {255}


def test_class_names_and_pictures():
    assert len(CIFAR100_LABELS) == len(set(CIFAR100_LABELS)) == 100 and list(CIFAR100_LABELS) == sorted(CIFAR100_LABELS)
    pictures = find_pictures([PICTURES])
    assert len(pictures) >= 6 and all(p.stem in CIFAR100_LABELS and p.stat().st_size < 5000 for p in pictures)
