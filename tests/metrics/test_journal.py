"""The journal: whole lines, plain numbers, and what a killed run leaves."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.metrics import Journal, read


def test_every_line_is_there_as_soon_as_it_is_written(tmp_path):
    journal = Journal(tmp_path / "new" / "metrics.jsonl")
    assert read(journal.path) == []
    for epoch in (1, 2):
        journal.write({"epoch": epoch, "loss": 0.5 / epoch})
        lines = journal.path.read_text().splitlines()
        assert json.loads(lines[-1]) == {"epoch": epoch, "loss": 0.5 / epoch} and len(lines) == epoch
    assert read(journal.path) == [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]


def test_numbers_of_any_kind_become_plain_ones(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write({
        "numpy": np.float32(0.5), "whole": np.int64(3), "jax": jnp.float32(0.25), "half": jnp.bfloat16(1.5),
        "nan": jnp.float32(jnp.nan), "infinite": -np.inf, "list": np.array([1.0, np.nan]), "name": "größer\n",
        "no": None,
    })  # fmt: skip
    assert read(journal.path) == [
        {"numpy": 0.5, "whole": 3, "jax": 0.25, "half": 1.5, "nan": None, "infinite": None, "list": [1.0, None],
         "name": "größer\n", "no": None}
    ]  # fmt: skip
    assert "NaN" not in journal.path.read_text() and "Infinity" not in journal.path.read_text()


def test_a_half_last_line_is_left_out_and_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n{"epoch": 2, "lo')
    assert read(path) == [{"epoch": 1}]
    assert path.read_text().endswith('"lo')  # reading changes nothing
    Journal(path).write({"epoch": 2})
    assert path.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


@pytest.mark.parametrize("line", ["nonsense", "3", "\xff"])
def test_a_damaged_line_is_named_by_its_number(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"epoch": 1}\n' + line.encode("latin-1") + b'\n{"epoch": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: expected a JSON object .*; remove that line"):
        read(path)


def test_a_folder_is_no_journal(tmp_path):
    with pytest.raises(OSError, match=tmp_path.name):
        Journal(tmp_path)
    with pytest.raises(OSError, match=r"absent\.jsonl"):
        read(tmp_path / "absent.jsonl")
