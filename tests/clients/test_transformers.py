"""transformers: committed folders as its own models, and as backbones of its detectors."""
import json

import pytest
import timm
import torch
from PIL import Image

import aa_models
from aa_models.release.saving import save_folder
from aa_models.zoo import own_checkpoints
from repository import ROOT

transformers = pytest.importorskip('transformers')
pytestmark = pytest.mark.clients
PHOTOGRAPH = ROOT / 'tests' / 'photographs' / 'espresso.jpg'


def loaded(folder, **kwargs):
    cls = transformers.AutoModelForImageClassification
    return cls.from_pretrained(folder, dtype=torch.float32, **kwargs).eval()


@pytest.mark.parametrize('name_tag', own_checkpoints())
@torch.no_grad()
def test_committed_folders(name_tag):
    """Same logits, at another size too, whose tables timm interpolates on loading and the layers as they run."""
    folder = ROOT / 'weights' / name_tag
    model, own = loaded(folder), timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    size = own.pretrained_cfg['input_size'][1]
    x = torch.randn(2, 3, size, size)
    assert torch.equal(model(x).logits, own(x))
    larger = 5 * size // 4
    x = torch.randn(1, 3, larger, larger)
    made_for_it = timm.create_model(f'local-dir:{folder}', pretrained=True, img_size=larger).eval()
    torch.testing.assert_close(model(x).logits, made_for_it(x), rtol=1e-3, atol=2e-3)  # tables of float16, two ways
    config = json.loads((folder / 'config.json').read_text())
    words = config.get('label_names') or list(config['id2label'].values())
    assert list(model.config.id2label.values()) == words


@pytest.mark.parametrize('name_tag, word', [
    ('aa_efficientnet_lite0.in1k', 'espresso'), ('aa_resnet18.tiny_in', 'espresso'), ('aa_simplecnn.cifar100', '')])
def test_pipeline(name_tag, word):
    folder = ROOT / 'weights' / name_tag
    classify = transformers.pipeline('image-classification', model=str(folder), dtype=torch.float32)
    best = classify(str(PHOTOGRAPH))[0]
    model = timm.create_model(name_tag, pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    with Image.open(PHOTOGRAPH) as picture, torch.no_grad():
        probability, index = model(transform(picture.convert('RGB'))[None]).softmax(1).max(1)
    assert best['label'] == classify.model.config.id2label[index.item()] and word in best['label']
    assert best['score'] == pytest.approx(probability.item(), abs=1e-4)


@torch.no_grad()
def test_other_classes_features_and_back(tmp_path):
    folder = ROOT / 'weights' / 'aa_simplecnn.cifar100'
    own, x = timm.create_model(f'local-dir:{folder}', pretrained=True).eval(), torch.randn(2, 3, 32, 32)
    other = loaded(folder, num_labels=5, ignore_mismatched_sizes=True)
    assert other(x).logits.shape == (2, 5) and other(x).logits.isfinite().all()
    assert torch.equal(other.timm_model.forward_features(x), own.forward_features(x))
    features = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()(x)
    assert torch.equal(features.last_hidden_state, own.forward_features(x))
    with pytest.raises(RuntimeError, match='ignore_mismatched_sizes'):  # tables of another size are not interpolated
        loaded(folder, model_args=dict(img_size=[40, 40]))
    loaded(folder).save_pretrained(tmp_path)
    assert torch.equal(timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()(x), own(x))


@torch.no_grad()
def test_networks_that_are_saved_here(tmp_path):
    """Attention that began without a constant, and a plain network with attention put into it."""
    plain = timm.create_model('test_resnet', num_classes=3)
    for model, size in (
            (timm.create_model('aa_simplecnn.cifar100', pretrained=True), 32),
            (aa_models.augment(plain, where='layer4.*.conv1', dk=16, dv=8), 64)):
        folder = tmp_path / str(size)
        save_folder(model.eval(), folder)
        x = torch.randn(2, 3, size, size)
        assert torch.equal(loaded(folder)(x).logits, model(x))


def test_detr():
    """A small DETR on one of this package's networks: its features, a loss, and a gradient in its attention."""
    backbone = transformers.TimmBackboneConfig(backbone='aa_resnet18', out_indices=[4], use_pretrained_backbone=False)
    config = transformers.DetrConfig(
        backbone_config=backbone, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=4, num_labels=2)
    model = transformers.DetrForObjectDetection(config)
    body, = (m for m in model.modules() if type(m).__name__ == 'FeatureListNet')  # timm's, its norms frozen
    x = torch.randn(1, 3, 64, 64)
    same = timm.create_model('aa_resnet18', features_only=True, out_indices=(4,)).eval()
    missing, unexpected = same.load_state_dict(body.state_dict(), strict=False)
    assert not unexpected and all(name.endswith('num_batches_tracked') for name in missing)
    with torch.no_grad():
        torch.testing.assert_close(body.eval()(x)[-1], same(x)[0])
    labels = [dict(class_labels=torch.tensor([1]), boxes=torch.tensor([[0.5, 0.5, 0.2, 0.3]]))]
    answer = model.train()(pixel_values=x, labels=labels)
    assert answer.logits.shape == (1, 4, 3) and answer.pred_boxes.shape == (1, 4, 4)
    answer.loss.backward()
    grads = [p.grad for n, p in model.named_parameters() if 'layer4' in n and 'attn.proj.weight' in n]
    assert grads and all(grad is not None and grad.isfinite().all() for grad in grads)
