import os

import pytest

from experiment.errors import UserError
from experiment.files import (
    atomic_file,
    atomic_folder,
    hash_bytes,
    hash_file,
    read_json,
    require_free_space,
    require_writable_folder,
    write_json,
)


def test_an_atomic_file_appears_whole(tmp_path):
    path = tmp_path / "deep" / "table.csv"
    with atomic_file(path) as temporary:
        assert temporary.suffix == ".csv"
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_an_exception_spares_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_atomic_folder_replaces_the_old_one_as_a_whole(tmp_path):
    path = tmp_path / "model"
    for name in ("first", "second"):
        with atomic_folder(path) as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / name).write_text(name)
    assert [p.name for p in (path / "sub").iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_spares_the_old_folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").touch()

    def fail() -> None:
        with atomic_folder(path) as temporary:
            (temporary / "half").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [p.name for p in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_json_round_trip_and_errors(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, None], "ü": 0.1})
    assert read_json(tmp_path / "a.json") == {"b": [1, None], "ü": 0.1}
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match=r"bad\.json: not valid JSON"):
        read_json(tmp_path / "bad.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.json: not valid JSON"):
        read_json(tmp_path / "binary.json")


def test_hashes_are_sha256(tmp_path):
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "abc").write_bytes(b"abc")
    assert hash_bytes(b"a", b"bc") == hash_file(tmp_path / "abc") == expected


def test_a_writable_folder_is_made_and_left_clean(tmp_path):
    folder = require_writable_folder(tmp_path / "a" / "b", "--logdir")
    assert list(folder.iterdir()) == []


def test_a_folder_below_a_file_is_refused_by_flag(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--logdir: folder .*file/sub is not writable"):
        require_writable_folder(tmp_path / "file" / "sub", "--logdir")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        require_writable_folder(tmp_path, "--logdir")


def test_free_space_is_checked_where_the_path_will_be(tmp_path):
    require_free_space(tmp_path / "not" / "yet", 1, "--logdir")
    with pytest.raises(UserError, match=r"--logdir: .* GB free, about 1000000000.00 GB are needed"):
        require_free_space(tmp_path / "not" / "yet", 10**18, "--logdir")
