"""Files that are whole or not there."""

import stat

import pytest

from vitseg_zoo.files import atomic_path


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as partial:
        partial.write_text("half of the ne")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_new_file_replaces_the_old_one_as_any_file_of_the_user(tmp_path):
    target, plain = tmp_path / "new folder" / "a.txt", tmp_path / "plain.txt"
    for text in ("first", "second"):
        with atomic_path(target) as partial:
            partial.write_text(text)
            assert partial.suffix == ".txt"
    plain.write_text("")
    assert target.read_text() == "second"
    assert list(target.parent.iterdir()) == [target]
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
