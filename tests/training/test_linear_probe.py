"""A classifier that is fitted to the features before any other layer learns."""
import pytest
import timm
import torch
from torch import nn
from torch.utils.data import IterableDataset
from torchvision.datasets import ImageFolder

from aa_models.errors import DivergenceError, InputError
from aa_models.models.create import build_model
from aa_models.training import linear_probe
from interruptions import lose_epochs
from training_runs import assert_same_run, checkpoint_of, run_training

STILL = dict(lr=1e-12, freeze_bn=True, epochs=1)  # nothing but the probe changes a weight


@pytest.fixture(scope='module')
def first(tmp_path_factory, data):
    """Folder of a network to start from."""
    output = run_training(tmp_path_factory.mktemp('first') / 'run', data, '--tag', 'noise', epochs=1)
    return f'local-dir:{output / "aa_simplecnn.noise"}'


def features_of(folder, first):
    """Pooled features, in float64, of a folder's training pictures as validation sees them, and their labels."""
    model = build_model(first, pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(dict(img_size=16), model=model))
    images, labels = zip(*ImageFolder(str(folder / 'train'), transform))
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(torch.stack(images)), pre_logits=True)
    return pooled.double(), torch.tensor(labels)


def slope(features, labels, weight, bias, penalty):
    """Largest derivative of the penalised loss, where the variances of the features are 1 on average; in float64."""
    mean, unit = features.mean(0), features.var(0, correction=0).mean().sqrt()
    scaled, weight, bias = (features - mean) / unit, weight.double() * unit, bias.double() + weight.double() @ mean
    residual = (scaled @ weight.t() + bias).softmax(1) - nn.functional.one_hot(labels, len(bias))
    return max((residual.t() @ scaled / len(labels) + penalty * weight).abs().max(), residual.mean(0).abs().max())


def clusters(each=30, classes=4, size=6, seed=0):
    """Points about a centre for each class, far from 0, on axes of which one never changes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(each)
    points = torch.randn(classes, size, generator=generator)[labels]
    points = points + 0.7 * torch.randn(len(labels), size, generator=generator) + 5 * torch.arange(size)
    points[:, 2] = 7.0
    return points, labels


def test_it_is_the_optimum_of_one_of_the_penalties():
    features, labels = clusters()
    weight, bias = linear_probe.fit_classifier(features, labels, 5)  # of a class more than there are pictures of
    slopes = [slope(features.double(), labels, weight, bias, penalty) for penalty in linear_probe.PENALTIES]
    assert min(slopes) < 1e-4 and sorted(slopes)[1] > 1e-3
    logits = features @ weight.t() + bias
    assert (logits.argmax(1) == labels).float().mean() > 0.7 and (logits.argmax(1) != 4).all()


def test_unit_and_origin_of_features_make_no_difference():
    features, labels = clusters()
    weight, bias = linear_probe.fit_classifier(features, labels, 4)
    moved = features * 20 + 3
    other, shifted = linear_probe.fit_classifier(moved, labels, 4)
    torch.testing.assert_close(moved @ other.t() + shifted, features @ weight.t() + bias, rtol=0, atol=1e-2)


def test_a_feature_that_hardly_changes_gets_no_say():
    """It is 0 but in one picture; where it changes more later on, answers stay."""
    features, labels = clusters()
    features[:, 2], features[5, 2] = 0, 1e-3
    weight, bias = linear_probe.fit_classifier(features, labels, 4)
    assert weight[:, 2].abs().max() < 0.1 < weight.abs().max()


def test_features_without_any_difference():
    weight, bias = linear_probe.fit_classifier(torch.ones(40, 3), torch.arange(4).repeat(10), 4)
    assert weight.isfinite().all() and torch.allclose(bias + weight.sum(1), torch.zeros(4), atol=1e-4)


@pytest.mark.parametrize('value', [float('inf'), float('nan')])
def test_features_that_are_no_numbers(value):
    features, labels = clusters()
    features[3, 1] = value
    with pytest.raises(DivergenceError, match='linear_probe: the features of a training picture are infinite'):
        linear_probe.fit_classifier(features, labels, 4)


@pytest.mark.parametrize('noise, expected', [(0.1, min), (8.0, max)])
def test_the_penalty_fits_the_pictures(noise, expected):
    """Little for features that tell everything, much for those that tell nothing."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(3).repeat(40)
    features = nn.functional.one_hot(labels, 20).float() + noise * torch.randn(120, 20, generator=generator)
    weight, bias = linear_probe.fit_classifier(features, labels, 3)
    slopes = {penalty: slope(features.double(), labels, weight, bias, penalty) for penalty in linear_probe.PENALTIES}
    assert min(slopes, key=slopes.get) == expected(linear_probe.PENALTIES)


def test_fewer_pictures_than_could_be_held_out():
    features, labels = clusters(each=1)
    weight, bias = linear_probe.fit_classifier(features, labels, 4)
    assert slope(features.double(), labels, weight, bias, 1e-2) < 1e-4


@pytest.mark.parametrize('source', ['pretrained', 'initial_checkpoint'])
def test_a_run_starts_from_it(tmp_path, data, first, source, caplog):
    """Weights and their moving average; the pictures are not those that training changes."""
    start = dict(pretrained=True, model=first, model_kwargs={}) if source == 'pretrained' else dict(
        initial_checkpoint=first)
    with caplog.at_level('INFO'):
        output = run_training(tmp_path / 'out', data, linear_probe=True, ema=True, hflip=0.5, color_jitter=0.4,
                              scale=[0.2, 0.4], **start, **STILL)
    assert 'fitted to four fifths of 24 training pictures' in caplog.text
    features, labels = features_of(data, first)
    content = checkpoint_of(output)
    old = build_model(first, pretrained=True).state_dict()
    for key in ('state_dict', 'state_dict_ema'):
        found = content[key]
        weight, bias = found.pop('head.fc.weight'), found.pop('head.fc.bias')
        assert min(slope(features, labels, weight, bias, penalty) for penalty in linear_probe.PENALTIES) < 1e-4
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, old[name].to(tensor.dtype), rtol=0, atol=1e-6)


def test_it_sees_what_is_trained_on(tmp_path, data, first, monkeypatch):
    """Neither pictures that are held out, nor more than are kept in memory; evenly of all classes."""
    seen = []

    def fit(features, labels, *args):
        seen.append((features, labels.tolist()))
        return torch.zeros(3, features.shape[1]), torch.zeros(3)
    monkeypatch.setattr(linear_probe, 'fit_classifier', fit)
    values = dict(pretrained=True, model=first, model_kwargs={}, linear_probe=True, holdout=6, train_images=12, **STILL)
    run_training(tmp_path / 'out', data, **values)
    monkeypatch.setattr(linear_probe, 'MOST_PICTURES', 6)
    run_training(tmp_path / 'fewer', data, **values)
    (features, labels), (fewer, labels_of_fewer) = seen
    assert sorted(labels) == [0] * 4 + [1] * 4 + [2] * 4 and sorted(labels_of_fewer) == [0, 0, 1, 1, 2, 2]
    apart = torch.cdist(fewer, features)
    assert apart.min(1).values.max() < 1e-5  # those are a part of these
    whole = torch.cdist(features.double(), features_of(data, first)[0])
    assert whole.min(1).values.max() < 1e-5


def test_a_run_that_goes_on_does_not_fit_it_again(tmp_path, data, first, caplog):
    values = dict(pretrained=True, model=first, model_kwargs={}, linear_probe=True, epochs=2, lr=0.01)
    unbroken = run_training(tmp_path / 'unbroken', data, **values)
    output = run_training(tmp_path / 'out', data, **values)
    lose_epochs(output)
    caplog.clear()
    with caplog.at_level('INFO'):
        run_training(output, data, **values)
    assert 'linear probe' not in caplog.text and 'resumed' in caplog.text
    assert_same_run(output, unbroken)


@pytest.mark.parametrize('values, words', [
    (dict(), 'linear_probe needs pretrained or initial_checkpoint'),
    (dict(pretrained=True, teacher='simplecnn.cifar100', task_loss_weight=0), 'linear_probe needs labels'),
])
def test_recipes_that_cannot_have_one(tmp_path, data, values, words):
    with pytest.raises(InputError, match=words):
        run_training(tmp_path / 'out', data, linear_probe=True, **values)
    assert not (tmp_path / 'out').exists()


def test_networks_and_datasets_that_cannot_have_one():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())
    model = timm.create_model('simplecnn', num_classes=3)
    linear_probe.check_probe(model, [])
    with pytest.raises(InputError, match='random access'):
        linear_probe.check_probe(model, Stream())
    with pytest.raises(InputError, match='a linear layer with a bias, not Identity'):
        linear_probe.check_probe(timm.create_model('simplecnn', num_classes=0), [])
