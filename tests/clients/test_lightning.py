"""lightning: a trainer's steps are those of a plain loop."""
import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import aa_models  # noqa: F401, registers the models

lightning = pytest.importorskip('lightning')
pytestmark = pytest.mark.clients


class Classifier(lightning.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, index):
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_trainer(tmp_path):
    model = timm.create_model('aa_simplecnn', num_classes=3)
    other = copy.deepcopy(model)
    loader = DataLoader(TensorDataset(torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])), batch_size=3)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator='cpu', devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path)
    trainer.fit(Classifier(model), loader)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    for x, y in [*loader, *loader]:
        optimizer.zero_grad()
        F.cross_entropy(other(x), y).backward()
        optimizer.step()
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, msg=name)
    path = next(tmp_path.rglob('*.ckpt'))
    again = Classifier.load_from_checkpoint(path, model=timm.create_model('aa_simplecnn', num_classes=3)).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.model(x), model.eval()(x))
