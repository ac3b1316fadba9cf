"""What DomainBed's and Dassl's scripts see of an algorithm, for the pages on them.

Neither is in a package index. The attributes and calls here are those that DomainBed's
`domainbed/algorithms.py` gives `ERM` and Dassl's `dassl/engine/trainer.py` gives `TrainerX`.
"""

import sys
from types import ModuleType

import torch
from torch import nn


class ERM(nn.Module):
    """`update` gets a pair of images and labels per environment and returns figures by name."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__()
        self.network = nn.Linear(input_shape[0], num_classes)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=hparams["lr"])

    def predict(self, x):
        return self.network(x)


class TrainerX:
    """`forward_backward` gets a dictionary with images, labels and domains."""

    def __init__(self, model):
        self.model = model
        self.optim = torch.optim.SGD(model.parameters(), lr=1.0)
        self.batch_idx, self.num_batches = 0, 2

    def parse_batch_train(self, batch):
        return batch["img"], batch["label"], batch["domain"]

    def model_zero_grad(self, names=None):
        self.optim.zero_grad()

    def model_update(self, names=None):
        self.optim.step()


class Registry(dict):
    def register(self):
        return lambda kind: self.setdefault(kind.__name__, kind)


def install(monkeypatch) -> None:
    """Make `domainbed.algorithms` and `dassl.engine` importable until the test ends."""
    algorithms, engine = ModuleType("domainbed.algorithms"), ModuleType("dassl.engine")
    algorithms.ERM, algorithms.ALGORITHMS = ERM, ["ERM"]
    engine.TrainerX, engine.TRAINER_REGISTRY = TrainerX, Registry()
    for module in (algorithms, engine):
        package, _, name = module.__name__.partition(".")
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        setattr(sys.modules[package], name, module)
