"""Under the tests every annotated shape and type of the package is checked at run time."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

from tests.annotations import check_annotations

check_annotations("gradsurgery")

# The tensors are small; a second thread would only wait for the first. The processes that tests
# start do the same: sums are the same bits only with the same number of threads.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# What a shell starts in the background ignores Ctrl-C, and so would the processes that tests
# interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Without a GPU the kernels that are written in Triton run on CPU tensors, in its interpreter. It
# has to be known before triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from gradsurgery.kernels import network  # noqa: E402

# Other processes share the machine: a slow example is no error.
hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=30, derandomize="CI" in os.environ
)
hypothesis.settings.load_profile("default")


def _path_from(variable: str, what: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set; it names {what}")
    return Path(os.environ[variable])


@pytest.fixture
def accelerator(monkeypatch) -> None:
    """Makes the engine and the rules treat the CPU as a device that Triton's kernels run on."""
    pytest.importorskip("triton")
    if "TRITON_INTERPRET" not in os.environ:
        pytest.skip("there is a GPU, whose own tests are in tests/gpu")
    monkeypatch.setattr(network, "DEVICES", {"cpu"})


@pytest.fixture
def without_triton(monkeypatch) -> None:
    """Makes the engine and the rules treat the CPU as an accelerator without Triton."""
    monkeypatch.setattr(network, "DEVICES", set())
    monkeypatch.setattr(network, "ONE_BY_ONE", set())


@pytest.fixture
def unrendered(monkeypatch) -> None:
    """Figures are drawn and not rendered, for tests of what stands around them."""
    monkeypatch.setattr("gradsurgery.report.figures.style.encoded", lambda _, kind: kind.encode())


@pytest.fixture
def make_folder() -> Callable[..., Path]:
    """Write domain/class/image folders of small random PNG images."""

    def make(
        root: Path, domains=("art", "photo"), classes=("cat", "dog"), each: int = 3, side: int = 9
    ) -> Path:
        random = np.random.default_rng(1)
        for domain in domains:
            for label in classes:
                folder = root / domain / label
                folder.mkdir(parents=True)
                for i in range(each):
                    pixels = random.integers(0, 256, (side, side + 2, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{i}.png")
        return root

    return make


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of decoded images, for tests that are not about it."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def pacs() -> Path:
    """The folder with PACS as Parquet files."""
    return _path_from("GRADSURGERY_PACS", "the folder with PACS as Parquet files")


@pytest.fixture(scope="session")
def efficientnet_weights() -> Path:
    """ImageNet weights of timm's tf_efficientnet_lite0."""
    return _path_from("GRADSURGERY_WEIGHTS", "ImageNet weights of tf_efficientnet_lite0")


# The files that take longest are begun first, so that no process works on one of them alone at the
# end.
_LONGEST = ("test_processes.py", "test_other_packages.py", "test_notebooks.py", "test_deploy.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _LONGEST)
