"""peft: LoRA on the attention's projections."""
import copy

import pytest
import timm
import torch
import torch.nn.functional as F

import aa_models  # noqa: F401, registers the models

peft = pytest.importorskip('peft')
pytestmark = pytest.mark.clients


@pytest.mark.parametrize('name', ['aa_simplecnn.cifar100', 'laa_simplecnn.cifar100'])
def test_lora(name):
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=True).eval()
    plain, x, labels = copy.deepcopy(model), torch.randn(4, 3, 32, 32), torch.arange(4)
    config = peft.LoraConfig(r=4, target_modules=r'.*\.attn\.(qkv|proj)', modules_to_save=['head.fc'])
    adapted = peft.get_peft_model(model, config)
    trained = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert sum('lora' in n for n in trained) == 8 and all('lora' in n or 'head.fc' in n for n in trained)
    with torch.no_grad():
        torch.testing.assert_close(adapted(x), plain(x))  # LoRA starts at nothing
    optimizer = torch.optim.Adam(adapted.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        losses.append(F.cross_entropy(adapted(x), labels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(p.grad.any() for n, p in adapted.named_parameters() if 'lora' in n)
    with torch.no_grad():
        expected = adapted(x)
        assert not torch.allclose(expected, plain(x))
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(x), expected, rtol=1e-4, atol=1e-4)
    assert merged.state_dict().keys() == plain.state_dict().keys()
