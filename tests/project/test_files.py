import os

import pytest

from haq.files import write_bytes, write_text


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "policy.json"
    write_text(path, "größer ≤ 3\n")
    assert path.read_bytes() == "größer ≤ 3\n".encode()
    write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"


def test_nothing_else_is_left_behind(tmp_path):
    write_text(tmp_path / "a", "new")
    write_text(tmp_path / "a", "newer")
    assert os.listdir(tmp_path) == ["a"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_text(path, "old")
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(path.read_text()))
    write_text(path, "new")
    assert (seen, path.read_text()) == (["old"], "new")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    def full(_):
        raise OSError("no space left on device")

    path = tmp_path / "a"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_text(path, "new")
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["a"])


def test_a_file_cannot_be_written_into_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "missing" / "a", "text")
