"""README's table of other tools: what each row says is run, and the messages are those that the tools have."""
import json
import re
import subprocess
import sys
from importlib import import_module

import pytest
import timm
import torch
from PIL import Image
from torch import nn

import aa_models  # noqa: F401, registers the models
from repository import ROOT

pytestmark = pytest.mark.clients
SECTION = (ROOT / 'README.md').read_text(encoding='utf-8').partition('\n## In other tools\n')[2].partition('\n## ')[0]
TABLES = [[[cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in table.splitlines()[2:]]
          for table in re.findall(r'(?:^\|.*\n)+', SECTION, re.MULTILINE)]
TOOLS, MESSAGES = ({cells[0]: cells[1] for cells in table} for table in TABLES)
IMPORTS = {  # what the rows take for granted, as each tool's own documentation imports it
    'segmentation-models-pytorch': dict(smp='segmentation_models_pytorch'),
    'fastai': dict(vision_learner='fastai.vision.all:vision_learner'),
    "torchvision's detectors": dict(
        FCOS='torchvision.models.detection:FCOS',
        BackboneWithFPN='torchvision.models.detection.backbone_utils:BackboneWithFPN'),
    'its features': dict(
        create_feature_extractor='torchvision.models.feature_extraction:create_feature_extractor'),
    'transformers': dict(AutoModelForImageClassification='transformers:AutoModelForImageClassification'),
    'its pipelines': dict(pipeline='transformers:pipeline'),
    'its detectors': {name: f'transformers:{name}' for name in ('DetrConfig', 'TimmBackboneConfig')},
    'peft': {name: f'peft:{name}' for name in ('get_peft_model', 'LoraConfig')},
    'grad-cam': dict(GradCAM='pytorch_grad_cam:GradCAM'),
    'captum': dict(IntegratedGradients='captum.attr:IntegratedGradients'),
    'torchinfo': dict(torchinfo='torchinfo'),
    'ptflops': dict(get_model_complexity_info='ptflops:get_model_complexity_info'),
    'fvcore': dict(FlopCountAnalysis='fvcore.nn:FlopCountAnalysis'),
    'torchao': {name: f'torchao.quantization:{name}' for name in ('quantize_', 'Int8WeightOnlyConfig')},
    'torch-pruning': dict(prune='aa_models.examples.pruning:prune'),
    'OpenVINO': dict(openvino='openvino'),
    'ExecuTorch': dict(to_edge='executorch.exir:to_edge'),
    'Core ML': dict(coremltools='coremltools'),
}
SCRIPTS = ["timm's `train.py`", 'its other scripts']


def found(target):
    module, _, name = target.partition(':')
    try:
        return getattr(import_module(module), name) if name else import_module(module)
    except ModuleNotFoundError as error:
        pytest.skip(f'{error.name} is not installed')


@pytest.fixture
def loaders(tmp_path):
    """What fastai calls `dls`."""
    vision = pytest.importorskip('fastai.vision.all')
    for kind in ('blue', 'red'):
        (tmp_path / kind).mkdir()
        for i in range(4):
            Image.new('RGB', (64, 64), kind).save(tmp_path / kind / f'{i}.png')
    return vision.ImageDataLoaders.from_folder(tmp_path, valid_pct=0.25, seed=0, bs=2, num_workers=0, device='cpu')


@pytest.mark.parametrize('tool', [tool for tool in TOOLS if tool not in SCRIPTS])
def test_row(tool, monkeypatch, tmp_path, request, fresh_compiler):
    names = {name: found(target) for name, target in IMPORTS.get(tool, {}).items()}
    for link in ('weights',):
        (tmp_path / link).symlink_to(ROOT / link)
    monkeypatch.chdir(tmp_path)
    names.update(torch=torch, timm=timm, self=nn.Module(), x=torch.randn(1, 3, 64, 64),
                 model=timm.create_model('aa_resnet18', pretrained=True).eval())
    if tool == 'fastai':
        names['dls'] = request.getfixturevalue('loaders')
    *before, last = re.findall(r'`([^`]+)`(?!\])', TOOLS[tool])
    for line in before:
        exec(line, names)
    try:
        result = eval(last, names)
    except SyntaxError:  # an assignment
        result = exec(last, names)
    if isinstance(result, nn.Module) and tool.startswith(('seg', 'peft', 'transformers')):
        assert result(names['x']) is not None


def test_every_row_has_a_test():
    assert len(TOOLS) > 20 and IMPORTS.keys() <= TOOLS.keys() and set(SCRIPTS) <= TOOLS.keys()
    assert '--device-modules aa_models' in TOOLS[SCRIPTS[0]]  # test_timm_scripts.py runs both
    assert 'python -m aa_models.run validate.py' in TOOLS[SCRIPTS[1]]


UNKNOWN = """
import json
said = {}
def ask(tool, what):
    try:
        what()
    except Exception as error:
        said[tool] = str(error)
import timm
ask('timm', lambda: timm.create_model('aa_resnet18'))
def smp():
    import segmentation_models_pytorch as smp
    smp.Unet('tu-aa_resnet18', encoder_weights=None)
ask('smp', smp)
def transformers():
    from transformers import AutoModelForImageClassification
    AutoModelForImageClassification.from_pretrained('weights/aa_resnet18.tiny_in')
ask('transformers', transformers)
print(json.dumps(said))
"""


def test_messages_of_unknown_models():
    """What is said where nobody has imported this package begins one of the table's rows."""
    for module in ('segmentation_models_pytorch', 'transformers'):
        pytest.importorskip(module)
    done = subprocess.run([sys.executable, '-c', UNKNOWN], cwd=ROOT, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    rows = [row.strip('`') for row in MESSAGES]
    assert rows[0] in said['timm'] and rows[0] in said['smp'] and rows[1] in said['transformers']


def test_message_of_two_numbers_of_classes(tmp_path):
    transformers = pytest.importorskip('transformers')
    timm.models.save_for_hf(timm.create_model('aa_simplecnn'), tmp_path, safe_serialization=True)
    message = list(MESSAGES)[2].strip('`')
    with pytest.raises(TypeError, match=re.escape(message)):
        transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    del config['model_args']['num_classes']
    (tmp_path / 'config.json').write_text(json.dumps(config))
    transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
