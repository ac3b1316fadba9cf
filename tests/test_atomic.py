import os
import stat

import pytest
import torch

from gradsurgery.atomic import atomic_file
from gradsurgery.errors import OutputError
from gradsurgery.training.checkpoint import save_weights


@pytest.fixture(params=[0o022, 0o027])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_follows_the_umask_whatever_its_writer_does(umask, tmp_path):
    with atomic_file(tmp_path / "a") as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    assert mode(tmp_path / "a") == 0o666 & ~umask


def test_a_model_follows_the_umask(umask, tmp_path):
    save_weights({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert mode(tmp_path / "model.safetensors") == 0o666 & ~umask


def test_nothing_is_left_of_a_file_that_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "a"):
        _ = 1 / 0
    with pytest.raises(OutputError), atomic_file(tmp_path / "a"):
        raise PermissionError
    assert list(tmp_path.iterdir()) == []
