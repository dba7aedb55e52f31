"""ONNX Runtime, OpenVINO, ExecuTorch and Core ML: files that run without this package give its numbers."""
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch

import aa_models  # noqa: F401, registers the models

pytestmark = pytest.mark.clients
NAMES = ['aa_simplecnn.cifar100', 'laa_simplecnn.cifar100']


@pytest.fixture(params=NAMES)
def case(request):
    model = timm.create_model(request.param, pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        return model, x, model(x)


def test_onnxruntime(case, tmp_path):
    """In a process that knows nothing of torch."""
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    model, x, expected = case
    torch.onnx.export(model, (x,), str(tmp_path / 'model.onnx'), dynamo=True, verbose=False, external_data=False)
    np.save(tmp_path / 'x.npy', x.numpy())
    code = ('import numpy, onnxruntime as ort; s = ort.InferenceSession("model.onnx"); '
            'numpy.save("y.npy", s.run(None, {s.get_inputs()[0].name: numpy.load("x.npy")})[0])')
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / 'y.npy'), expected.numpy(), rtol=1e-3, atol=1e-4)
    assert runtime.get_available_providers()


def test_openvino(case):
    openvino = pytest.importorskip('openvino')
    model, x, expected = case
    compiled = openvino.compile_model(
        openvino.convert_model(model, example_input=x), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    np.testing.assert_allclose(compiled(x.numpy())[0], expected.numpy(), rtol=1e-3, atol=1e-3)


def test_executorch(case, tmp_path):
    pytest.importorskip('executorch.exir')
    from executorch.exir import to_edge
    from executorch.runtime import Runtime

    model, x, expected = case
    program = to_edge(torch.export.export(model, (x,))).to_executorch()
    (tmp_path / 'model.pte').write_bytes(program.buffer)
    found, = Runtime.get().load_program(tmp_path / 'model.pte').load_method('forward').execute([x])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_coremltools(case):
    """Converted from a program of torch.export; it runs on Apple's systems only."""
    coremltools = pytest.importorskip('coremltools')
    model, x, _ = case
    program = torch.export.export(model, (x,)).run_decompositions({})
    converted = coremltools.convert(program, minimum_deployment_target=coremltools.target.iOS17)
    spec = converted.get_spec().description
    assert len(spec.input) == 1 and len(spec.output) == 1
