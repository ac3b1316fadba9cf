import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.errors import ArgumentError, OutputError
from gradsurgery.training.directory import check_same, claimed, folder_name


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
        "from gradsurgery.training.directory import claimed\n"
        "with claimed(Path(sys.argv[1])):\n print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another process is working in"), claimed(tmp_path):
            pass
        holder.kill()
    with claimed(tmp_path):
        pass


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.pt.123.tmp").touch()
    with claimed(tmp_path):
        assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(OutputError, match="no permission"), claimed(tmp_path / "run"):
        pass


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"), claimed(tmp_path / "file" / "run"):
        pass


def test_other_options_are_refused_with_both_values(tmp_path: Path) -> None:
    one = RunConfiguration(data="pacs", target="sketch", seed=1)
    two = RunConfiguration(data="pacs", target="sketch", seed=2)
    check_same(one, one, tmp_path)
    with pytest.raises(ArgumentError, match="seed: 2 there, 1 here"):
        check_same(one, two, tmp_path)


NAMES = st.text(st.sampled_from("a./\\%2FE\0\x1b :"), min_size=1) | st.text(min_size=1)


@given(NAMES, NAMES)
def test_different_names_have_different_folders(first, second):
    names = {first, second}
    folders = {folder_name(name) for name in names}
    assert len(folders) == len(names)
    for folder in folders:
        assert "/" not in folder
        assert not folder.startswith(".")
        assert len(os.fsencode(folder)) <= 120
        assert Path("x", folder).parent == Path("x")


def test_long_names_have_different_folders():
    first, second = folder_name("é" * 300 + "a"), folder_name("é" * 300 + "b")
    assert first != second
    assert max(len(os.fsencode(first)), len(os.fsencode(second))) <= 120
