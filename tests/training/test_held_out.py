"""A folder without splits is measured on the pictures that training held out, never on those that it saw."""
import shutil

import pytest

from aa_models.errors import InputError
from aa_models.release.results import read_results
from aa_models.training.corruptions import measure_corruptions
from aa_models.training.datasets import labels_of, open_dataset
from aa_models.training.recipe import Recipe
from aa_models.training.splits import open_datasets
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


def test_those_held_out_of_the_pictures_that_can_be_read(tmp_path, caplog):
    """A broken one is no picture to either command; without it others are held out than with it."""
    flat = make_pictures(tmp_path / 'flat', splits=('',))
    next(flat.glob('*/*.png')).write_bytes(b'not a picture')
    output = run_training(tmp_path / 'out', flat, '--tag', 'noise', '--skip-broken', holdout=6, epochs=3, seed=0)
    for values in ({}, dict(skip_broken=True)):
        result = measured(output, flat, 'folder', **values)
        assert result.images == 6 and result.top1 == pytest.approx(float(log_of(output)[-1]['eval_top1']))
    assert 'measured are the 6 of its 23 pictures' in caplog.text


def test_those_held_out_of_a_folder_by_another_name(tmp_path):
    flat = make_pictures(tmp_path / 'flat', splits=('',))
    values = dict(dataset='torch/image_folder', holdout=6)
    output = run_training(tmp_path / 'out', flat, '--tag', 'noise', **values)
    assert measured(output, flat, 'checkpoint', dataset=values['dataset']).images == 6


def test_a_rare_class_keeps_a_picture_to_learn_from(tmp_path):
    flat = make_pictures(tmp_path / 'flat', splits=('',))
    for file in list((flat / 'class2').iterdir())[1:]:
        file.unlink()
    train, evaluation = (labels_of(part) for part in open_datasets(Recipe(holdout=6), str(flat), download=False))
    assert train.count(2) == 1 and len(evaluation) == 6 and evaluation.count(0) == evaluation.count(1) == 3


def test_all_on_request_and_of_other_folders(trained, tmp_path):
    flat, output = trained
    assert measured(output, flat, 'folder', val_split='train').images == 24
    assert measured(output, make_pictures(tmp_path / 'few', each=2, splits=('',)), 'folder').images == 6
    assert measured(output, make_pictures(tmp_path / 'split', each=4), 'folder').images == 12


@pytest.mark.parametrize('source', ['checkpoint', 'folder'])
def test_all_of_another_folder_without_splits(source, trained, tmp_path, caplog):
    """Training held nothing out of it, and it is told from that folder in another place."""
    flat, output = trained
    shutil.copytree(flat, moved := tmp_path / 'moved')
    assert measured(output, moved, source).images == 6 and 'measured are the 6 of its 24 pictures' in caplog.text
    shutil.copy(flat / 'class0' / '0.png', moved / 'class0' / 'another.png')
    assert measured(output, moved, source).images == 25
    assert 'not those that training held 6 out of: all 25 are measured' in caplog.text


def test_a_run_does_not_go_on_with_other_pictures(tmp_path):
    """Those held out would be others, some of which it was trained on."""
    flat = make_pictures(tmp_path / 'flat', splits=('',))
    output = run_training(tmp_path / 'out', flat, holdout=6)
    before = (output / 'last.pth.tar').read_bytes()
    shutil.copy(flat / 'class0' / '0.png', flat / 'class0' / 'another.png')
    with pytest.raises(InputError, match='holds a run of another recipe .holdout_of: '):
        run_training(tmp_path / 'out', flat, holdout=6)
    assert (output / 'last.pth.tar').read_bytes() == before


def test_the_card_says_how_many(trained):
    flat, output = trained
    folder = output / 'aa_simplecnn.noise'
    run_validation('--model', f'local-dir:{folder}', '--data-dir', flat, '--card')
    text = (folder / 'README.md').read_text()
    assert '6 images' in text and '24 images' not in text


def test_the_table_has_a_row_for_each_checkpoint(trained, tmp_path):
    flat, output = trained
    checkpoints = [output / name for name in ('last.pth.tar', 'model_best.pth.tar')]
    for checkpoint in checkpoints:
        run_validation('--checkpoint', checkpoint, '--data-dir', flat, '--results-file', tmp_path / 'results.csv')
    rows = read_results(tmp_path / 'results.csv')
    assert {row['model'] for row in rows} == set(map(str, checkpoints))


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
