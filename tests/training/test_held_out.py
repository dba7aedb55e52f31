"""A folder without splits is measured on the pictures that training held out, never on those that it saw."""
import pytest

from aa_models.training.corruptions import measure_corruptions
from aa_models.training.datasets import open_dataset
from aa_models.training.validation import validate, validation_recipe
from training_runs import log_of, make_pictures, run_training, run_validation


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder of 24 pictures without splits, and a run that held 6 of them out."""
    place = tmp_path_factory.mktemp('held_out')
    flat = make_pictures(place / 'flat', splits=('',))
    return flat, run_training(place / 'out', flat, '--tag', 'noise', holdout=6, epochs=3, seed=0)


def measured(output, flat, source, **values):
    """By a run's checkpoint, or by the folder that it left."""
    checkpoint = output / 'last.pth.tar' if source == 'checkpoint' else None
    if checkpoint is None:
        values['model'] = f'local-dir:{output / "aa_simplecnn.noise"}'
    recipe = validation_recipe(checkpoint, workers=0, **values)
    return validate(recipe, checkpoint=checkpoint, data_dir=str(flat), device='cpu')


@pytest.mark.parametrize('source', ['checkpoint', 'folder'])
def test_those_held_out(trained, source, caplog):
    flat, output = trained
    result = measured(output, flat, source)
    assert result.images == 6 and result.top1 == pytest.approx(float(log_of(output)[-1]['eval_top1']))
    assert f'{flat} has no folders train/ and validation/: measured are the 6 of its 24 pictures' in caplog.text


def test_all_on_request_and_of_other_folders(trained, tmp_path):
    flat, output = trained
    assert measured(output, flat, 'folder', val_split='train').images == 24
    assert measured(output, make_pictures(tmp_path / 'few', each=2, splits=('',)), 'folder').images == 6
    assert measured(output, make_pictures(tmp_path / 'split', each=4), 'folder').images == 12


def test_the_card_says_how_many(trained):
    flat, output = trained
    folder = output / 'aa_simplecnn.noise'
    run_validation('--model', f'local-dir:{folder}', '--data-dir', flat, '--card')
    text = (folder / 'README.md').read_text()
    assert '6 images' in text and '24 images' not in text


@pytest.mark.parametrize('images', [0, 3])
def test_corrupted_pictures(trained, images):
    pytest.importorskip('imagecorruptions', reason='it makes the corruptions')
    flat, output = trained
    recipe = validation_recipe(model=f'local-dir:{output / "aa_simplecnn.noise"}', workers=0, img_size=32)
    rows = measure_corruptions([recipe], images=images, data_dir=str(flat), device='cpu')
    assert next(rows)['images'] == (images or 6)


def test_a_recipe_that_is_none(trained, tmp_path):
    """Of a folder from elsewhere: which pictures were held out is not known from it."""
    flat, output = trained
    folder = tmp_path / 'copy'
    folder.mkdir()
    for file in (output / 'aa_simplecnn.noise').iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / 'recipe.yaml').write_text('layers: [1, 2]\n')
    result = validate(
        validation_recipe(model=f'local-dir:{folder}', workers=0), data_dir=str(flat), device='cpu')
    assert result.images == len(open_dataset('', str(flat), 'train')) == 24
