"""`aa-models predict`: answers as text, JSON and tables, and pictures that cannot be read."""
import csv
import io
import json
import math
import os
import struct
import sys
from unittest import mock

import pytest
import timm
from PIL import Image
from timm.data import ImageNetInfo

from aa_models.analysis.prediction import predict
from aa_models.data.pictures import find_pictures
from command import answered, run_command
from fake_weights import LABELS, NAME, NAME_TAG, NUM_CLASSES
from repository import BROKEN_PICTURES, LION, PICTURES


@pytest.mark.parametrize('top', [3, 99])
def test_predict_json(top, folder, capsys):
    answers, (alone,) = (
        json.loads(answered(capsys, 'predict', path, '--model', NAME, '--json', '--top', top))
        for path in (PICTURES, LION))
    assert [a['file'] for a in answers] == [str(p) for p in find_pictures([PICTURES])]
    assert alone in answers  # whatever the others are
    for answer in answers:
        guesses, probabilities = answer['predictions'], [g['probability'] for g in answer['predictions']]
        assert len(guesses) == min(top, NUM_CLASSES) and all(LABELS[g['index']] == g['label'] for g in guesses)
        assert probabilities == sorted(probabilities, reverse=True)
        assert math.isclose(sum(probabilities), 1, abs_tol=1e-6) == (top > NUM_CLASSES)


def test_predict_text(folder, capsys):
    lines = answered(capsys, 'predict', LION, PICTURES / 'castle.png', '--model', NAME_TAG).splitlines()
    assert len(lines) == 2 * 6 and lines[0] == str(LION)
    assert all(line.split()[0].endswith('%') and line.split()[1] in LABELS for line in lines[1:6])


@pytest.mark.parametrize('batch_size', [1, 2])
def test_predict_goes_on_past_what_is_broken(batch_size, folder, tmp_path, capsys):
    for number, content in enumerate([*BROKEN_PICTURES, LION.read_bytes()]):
        (tmp_path / f'{number}.png').write_bytes(content)
    words = ['predict', tmp_path, LION, '--model', NAME, '--batch-size', batch_size]
    status, out, err = run_command(capsys, *words, '--json')
    assert status == 1 and [answer['file'] for answer in json.loads(out)] == [str(tmp_path / '3.png'), str(LION)]
    assert [str(tmp_path / f'{number}.png') in line for number, line in enumerate(err.splitlines())] == 3 * [True]
    status, out, _ = run_command(capsys, 'predict', tmp_path / '0.png', '--model', NAME, '--json')
    assert status == 1 and json.loads(out) == []


def test_a_picture_too_long_to_be_resized_holds_nobody_up(folder, tmp_path, capsys):
    Image.new('RGB', (200_000, 1)).save(tmp_path / 'a.png')
    (tmp_path / 'b.png').write_bytes(LION.read_bytes())
    with mock.patch.dict(os.environ, AA_MODELS_MAX_GB='0.5'):
        status, out, err = run_command(capsys, 'predict', tmp_path, '--model', NAME, '--json')
    assert status == 1 and [answer['file'] for answer in json.loads(out)] == [str(tmp_path / 'b.png')]
    assert '200000 × 1 pixels, resized for the network, would take at least' in err and len(err.splitlines()) == 1


@pytest.mark.parametrize('error', [RuntimeError, TypeError, KeyError, ZeroDivisionError, struct.error])
def test_what_a_decoder_raises(error, folder, monkeypatch, capsys):
    """Those of some formats let all kinds of errors through."""
    monkeypatch.setattr(Image.Image, 'load', mock.Mock(side_effect=[error('broken inside'), *[mock.DEFAULT] * 99]))
    monkeypatch.setattr(Image.Image, 'convert', lambda picture, mode: Image.new(mode, (40, 40)))
    status, out, err = run_command(capsys, 'predict', LION, LION, '--model', NAME, '--json')
    assert status == 1 and len(json.loads(out)) == 1 and 'cannot be read as a picture' in err


def test_predict_csv_and_threshold(folder, tmp_path, capsys):
    words = ['predict', PICTURES, '--model', NAME]
    expected = json.loads(answered(capsys, *words, '--json'))
    probabilities = sorted(guess['probability'] for answer in expected for guess in answer['predictions'])
    threshold = probabilities[len(probabilities) // 2]
    assert answered(capsys, *words, '--csv', '--threshold', threshold, '--output', tmp_path / 'a.csv') == ''
    with (tmp_path / 'a.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(row['file'], row['label'], float(row['probability'])) for row in rows] == [
        (answer['file'], guess['label'], guess['probability'])
        for answer in expected for guess in answer['predictions'] if guess['probability'] >= threshold]
    assert [path.name for path in tmp_path.iterdir()] == ['a.csv'] and 0 < len(rows) < len(probabilities)
    assert answered(capsys, *words, '--threshold', 1).count('no class is that probable') == len(expected)


def test_predict_csv_of_a_name_that_is_no_unicode(folder, tmp_path, capsys):
    picture = tmp_path / os.fsdecode(b'caf\xe9.png')
    picture.write_bytes(LION.read_bytes())
    assert answered(capsys, 'predict', picture, '--model', NAME, '--csv', '--output', tmp_path / 'a.csv') == ''
    assert 'caf\\udce9.png' in (tmp_path / 'a.csv').read_text(encoding='utf-8')


def test_predict_from_a_closed_standard_input(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'stdin', None)
    status, _, err = run_command(capsys, 'predict', '-', '--model', NAME)
    assert status == 1 and 'standard input is not a picture' in err


def test_predict_from_standard_input(folder, monkeypatch, capsys):
    for content, status in ((LION.read_bytes(), 0), (b'<html>', 1)):
        monkeypatch.setattr(sys, 'stdin', mock.Mock(buffer=io.BytesIO(content)))
        done, out, err = run_command(capsys, 'predict', '-', '--model', NAME)
        assert done == status and (out.startswith('-\n') if status == 0 else 'standard input is not a picture' in err)


def test_predict_is_the_same_for_every_source(folder, capsys):
    sources = [NAME, NAME_TAG, f'local-dir:{folder}', str(folder)]
    assert len({answered(capsys, 'predict', PICTURES, '--model', source, '--json') for source in sources}) == 1


def test_model_without_class_names_and_with_one_channel(tmp_path):
    model = timm.create_model(NAME, num_classes=4, in_chans=1).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    answer, = predict(timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval(), [LION])
    assert sorted(g['label'] for g in answer['predictions']) == ['0', '1', '2', '3']
    same, = predict(model, [LION])  # though its cfg says three channels
    assert [g['probability'] for g in same['predictions']] == [g['probability'] for g in answer['predictions']]


def test_timms_models_of_imagenet_have_names():
    answer, = predict(timm.create_model('test_resnet').eval(), [LION], top=1)
    guess, = answer['predictions']
    assert guess['label'] == ImageNetInfo().index_to_label_name(guess['index'])
    assert guess['description'] == ImageNetInfo().index_to_description(guess['index'])
