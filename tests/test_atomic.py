import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from gradsurgery.atomic import atomic_file, check_folder, claimed, remove_lock, shared
from gradsurgery.errors import OutputError
from gradsurgery.training.checkpoint import save_weights


@pytest.fixture(params=[0o022, 0o027, 0o002])
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


def test_what_a_dead_process_was_writing_is_removed_by_the_next_writer(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    old, new, alive, other = (
        tmp_path / name
        for name in (
            f".a[1].{dead.pid}.tmp",
            f".b.{dead.pid}.tmp",
            f".a[1].{os.getppid()}.tmp",
            f".a1.{dead.pid}.tmp",
        )
    )
    for path in (old, new, alive, other):
        path.touch()
    for path in (old, alive, other):
        os.utime(path, (0, 0))
    for name in ("a[1]", "b"):
        with atomic_file(tmp_path / name) as temporary:
            temporary.write_text("whole")
    left = {path.name for path in tmp_path.iterdir()} - {"a[1]", "b"}
    assert left == {new.name, alive.name, other.name}  # the new one may be another machine's


def test_a_folder_that_stays_empty_is_removed_with_its_parents(tmp_path: Path) -> None:
    with claimed(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_content_stays_without_the_lock(tmp_path: Path) -> None:
    with claimed(tmp_path / "a"):
        (tmp_path / "a" / "file").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


def test_a_second_process_is_refused_until_the_first_has_died(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from gradsurgery.atomic import claimed\n"
        "with claimed(Path(sys.argv[1])):\n print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another process is working in"), claimed(tmp_path):
            pass
        remove_lock(tmp_path)
        assert (tmp_path / ".lock").exists()
        holder.kill()
    remove_lock(tmp_path)
    assert not list(tmp_path.iterdir())
    with claimed(tmp_path):
        pass


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    for name in (".checkpoint.pt.123.tmp", ".tmpnkYBq9", ".tmp-of-mine"):
        (tmp_path / name).touch()
    with claimed(tmp_path):
        assert [path.name for path in tmp_path.glob("*tmp*")] == [".tmp-of-mine"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(OutputError, match="no permission"), claimed(tmp_path / "run"):
        pass


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"), claimed(tmp_path / "file" / "run"):
        pass
    place = tmp_path / "file" / "table.csv"
    with pytest.raises(OutputError) as raised, atomic_file(place):
        pass
    assert f"cannot write {place}: {tmp_path / 'file'} is no folder; choose" in str(raised.value)


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    check_folder(tmp_path / "there")
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name in ("file", "file/a", "n" * 300, "link"):
        place = tmp_path / name
        with pytest.raises(OutputError, match="cannot write"):
            check_folder(place)
        with pytest.raises(OutputError, match="cannot write"), claimed(place):
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="who may write everywhere")
def test_a_folder_without_permission_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir(mode=0o555)
    with pytest.raises(OutputError, match="no permission"):
        check_folder(tmp_path / "kept" / "a" / "b")


def test_processes_share_a_folder_and_the_first_knows_that_it_is_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    alone: list[bool] = []
    code = (
        "import sys, time; from pathlib import Path; from gradsurgery.atomic import shared\n"
        "with shared(Path(sys.argv[1]), print): print('in', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert [other.stdout.readline() for _ in range(2)] == ["True\n", "in\n"]
    with shared(folder, alone.append):
        pass
    assert alone == [False]
    other.kill()
    other.communicate()
    with shared(folder, alone.append), shared(folder, alone.append):
        (folder / "kept").touch()
    assert alone == [False, True, False]
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_nothing_is_left_of_a_folder_that_is_not_to_be_shared(tmp_path: Path) -> None:
    def refuse(alone: bool) -> None:
        raise OutputError("no")

    with pytest.raises(OutputError, match="no"), shared(tmp_path / "a" / "b", refuse):
        raise AssertionError
    assert list(tmp_path.iterdir()) == []


def test_a_shared_folder_that_is_removed_and_made_anew_is_another(tmp_path: Path) -> None:
    folder, alone = tmp_path / "new", []
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(shared(folder, alone.append))
        shutil.rmtree(folder)
        second.enter_context(shared(folder, alone.append))
        first.close()
        with shared(folder, alone.append):
            pass
    assert alone == [True, True, False]
    assert list(folder.iterdir()) == []

    def refuse(alone: bool) -> None:
        shutil.rmtree(folder)
        raise OutputError("no")

    with pytest.raises(OutputError, match="no"), shared(folder, refuse):
        raise AssertionError


def test_what_is_in_the_way_of_a_lock_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".shared.lock").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*shared\.lock"), shared(tmp_path, print):
        raise AssertionError


def test_who_may_write_into_a_folder_may_share_it(umask: int, tmp_path: Path) -> None:
    with shared(tmp_path, print):
        assert mode(tmp_path / ".shared.lock") == 0o666 & ~umask


def test_who_wants_to_share_a_folder_waits_while_another_enters(tmp_path: Path) -> None:
    seen: list[bool] = []

    def enter(alone: bool) -> None:
        seen.append(alone)
        time.sleep(0.2)

    def work(_: int) -> None:
        with shared(tmp_path, enter):
            everybody.wait(60)

    everybody = threading.Barrier(3)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert seen == [True, False, False]
