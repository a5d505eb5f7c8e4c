"""Files that are whole or not there, and what their bytes are known by."""

import hashlib
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from cnnjax.files.digests import content_digest, digest, file_digest, joined_digest
from cnnjax.files.writing import sync, whole_file, write_whole, write_whole_arrays


@pytest.mark.parametrize("synced", [False, True])
def test_a_file_is_old_until_the_new_one_is_whole(tmp_path: Path, synced: bool) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole_file(path, synced=synced) as partial:
        partial.write_text("new")
        assert path.read_text() == "old" and partial.parent == path.parent
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


def test_where_writing_fails_the_old_file_stays_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with whole_file(path) as partial:
            partial.write_text("half")
            raise OSError("disk is full")

    with pytest.raises(OSError, match="disk is full"):
        write()
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_texts_bytes_and_arrays_are_written_as_they_are(tmp_path: Path) -> None:
    write_whole(tmp_path / "text", "ä\n")
    write_whole(tmp_path / "bytes", memoryview(b"\r\n"), synced=True)
    write_whole_arrays(tmp_path / "arrays.npz", x=np.arange(3))
    sync(tmp_path)
    assert (tmp_path / "text").read_bytes() == "ä\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\r\n"
    assert np.load(tmp_path / "arrays.npz")["x"].tolist() == [0, 1, 2]


def test_digests_are_sha_256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert content_digest(b"abc").hex() == file_digest(tmp_path / "a") == joined_digest("a", [b"b", b"c"]) == known
    assert digest("abc") == hashlib.sha256((3).to_bytes(8, "little") + b"abc").hexdigest()


def test_arrays_count_with_type_shape_and_values() -> None:
    x = np.arange(4, dtype=np.float32)
    others = [x.astype(np.float64), x.reshape(2, 2), x + 1]
    assert len({digest(y) for y in (x, *others)}) == 4
    assert digest(x) == digest(jax.numpy.asarray(x))
    assert digest(jax.random.key(1)) == digest(jax.random.key_data(jax.random.key(1))) != digest(jax.random.key(2))
