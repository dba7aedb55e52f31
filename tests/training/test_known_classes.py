"""A new classifier takes over what the pretrained one knew of the same classes."""
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from aa_models.training.known_classes import keep_known_classes
from training_runs import checkpoint_of, make_pictures, run_training


def noise(num_classes=3):
    """A network that knows the classes A, a and b."""
    model = timm.create_model('simplecnn', num_classes=num_classes, channels=(8, 8, 16, 16, 16))
    model.pretrained_cfg = dict(num_classes=3, label_names=('A', 'a', 'b'))
    return model


@pytest.mark.parametrize('names, sources', [
    (['a', 'A', 'b'], [1, 0, 2]), (['b', 'new', 'other'], [2, None, None]), (['B', 'new', 'a'], [2, None, 1]),
    (['x', 'y', 'z'], [0, 1, 2])])  # nothing is known: timm's rule holds, which keeps a classifier of the same size
def test_a_classifier_of_the_same_size(names, sources):
    model, pretrained = noise(), noise()
    model.load_state_dict(pretrained.state_dict())
    keep_known_classes(model, names, lambda **kwargs: pretrained if kwargs.get('pretrained') else noise(**kwargs))
    for name, tensor in model.get_classifier().named_parameters():
        old = pretrained.get_classifier().get_parameter(name)
        for row, source in zip(tensor, sources, strict=True):
            if source is None:
                assert not any(torch.equal(row, other) for other in old)
            else:
                assert torch.equal(row, old[source])


@pytest.mark.parametrize('known', [True, False])
def test_a_run_keeps_them(tmp_path, data, known, caplog):
    """The dataset lacks one of the three classes and has a new one among them."""
    first = run_training(tmp_path / 'first', data, '--tag', 'noise', epochs=1)
    others = make_pictures(tmp_path / 'others')
    for split in ('train', 'validation'):
        (others / split / 'class1').rename(others / split / 'class1b')
    old = load_file(first / 'aa_simplecnn.noise' / 'model.safetensors')
    with caplog.at_level('INFO'):
        output = run_training(
            tmp_path / 'second', others, '--known-classes' if known else '--no-known-classes', pretrained=True,
            model=f'local-dir:{first / "aa_simplecnn.noise"}', model_kwargs={}, num_classes=4, lr=1e-12, epochs=1)
    assert ('2 of 3 classes are known to the pretrained weights' in caplog.text) is known
    new = checkpoint_of(output)['state_dict']
    for name in ('head.fc.weight', 'head.fc.bias'):
        assert len(new[name]) == 4 and not torch.isclose(new[name][[1, 3]], old[name][1].float()).any()
        kept = torch.isclose(new[name][[0, 2]], old[name][[0, 2]].float(), atol=1e-8)
        assert kept.all() if known else not kept.any()


def wide(num_classes):
    """A network that classifies by a convolution, and says by its number of outputs that they are ImageNet's."""
    model = nn.Sequential(nn.Conv2d(4, num_classes, 1))
    model.get_classifier = lambda: model[0]
    model.num_classes, model.pretrained_cfg = num_classes, dict(num_classes=1000)
    return model


@pytest.mark.parametrize('make', [lambda n: timm.create_model('test_resnet', num_classes=n), wide])
def test_networks_of_imagenet_know_its_synsets(make):
    """timm's have no names in their cfg; classes may go by words, and the order of the labels may be any."""
    model, pretrained = make(3), make(1000)
    before = model.get_classifier().bias.clone()
    assert keep_known_classes(model, ['fish', 'crane', '2'], lambda **kwargs: pretrained) == 0  # two classes are cranes
    assert torch.equal(model.get_classifier().bias, before)
    assert keep_known_classes(model, ['fish', 'goldfish', 'Tinca_tinca'], lambda **kwargs: pretrained) == 2
    assert model.get_classifier().bias[0] == before[0]
    assert keep_known_classes(model, ['n01484850', 'n01443537', 'tench'], lambda **kwargs: pretrained) == 3
    for name, tensor in model.get_classifier().named_parameters():
        assert torch.equal(tensor, pretrained.get_classifier().get_parameter(name)[[2, 1, 0]])


def test_what_has_no_output_for_each_class_stays(caplog):
    model = wide(2)
    model.get_classifier = nn.Identity
    with caplog.at_level('INFO'):
        assert keep_known_classes(model, ['n01484850', 'n01443537'], lambda **kwargs: model) == 0
    assert 'the classes start anew' in caplog.text
