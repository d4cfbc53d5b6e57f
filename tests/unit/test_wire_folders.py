"""Folders of killed processes are found and deleted, those of living ones are left alone."""

import subprocess
import sys
from pathlib import Path

from headstock.wire.folders import PrivateFolder, sweep_folders

MAKE = (
    "import sys, tempfile, time\n"
    "tempfile.tempdir = sys.argv[1]\n"
    "from headstock.wire.transport import Endpoint\n"
    "print(Endpoint().directory, flush=True)\n"
    "time.sleep(60)\n"
)


def test_the_folder_of_a_killed_process_is_deleted_and_that_of_a_living_one_is_not(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    folder = Path(process.stdout.readline().strip())
    assert folder.is_dir()
    assert sweep_folders(tmp_path) == 0
    assert folder.is_dir()
    process.kill()
    process.wait()
    assert sweep_folders(tmp_path) == 1
    assert not folder.exists()


def test_what_is_not_ours_is_left(tmp_path):
    (tmp_path / "headstock-notes").mkdir()
    (tmp_path / "headstock-file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lock").write_text("")
    assert sweep_folders(tmp_path) == 0
    assert len(list(tmp_path.iterdir())) == 3


def test_a_removed_folder_is_gone(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = PrivateFolder("ranks-")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.remove()
    folder.remove()
    assert not folder.path.exists()
