"""The run folder: whole lines, the same configuration, and going on."""

import json
import subprocess
import sys

import pytest

from cnnjax.files.runs import RunFolder, RunMismatch

CONFIG = {"epochs": 3, "freeze": ["all", "none"], "data": None}


def test_a_cut_line_is_dropped_and_the_whole_ones_kept(tmp_path):
    run = RunFolder(tmp_path, CONFIG)
    run.append({"cell": "a", "test_accuracy": 0.5})
    run.append({"cell": "b", "test_accuracy": 0.6})
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"cell": "c", "test_acc')
    again = RunFolder(tmp_path, CONFIG)
    assert [line["cell"] for line in again.results] == ["a", "b"]
    again.append({"cell": "c", "test_accuracy": 0.7})
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["cell"] for line in lines] == ["a", "b", "c"]


def test_another_configuration_is_refused_with_every_difference(tmp_path):
    RunFolder(tmp_path, CONFIG)
    with pytest.raises(RunMismatch, match=r"(?s)give another --out.*epochs: 3 there, 4 now.*seeds: None there, 2 now"):
        RunFolder(tmp_path, {**CONFIG, "epochs": 4, "seeds": 2})


def test_tuples_and_lists_are_one_configuration(tmp_path):
    RunFolder(tmp_path, CONFIG)
    RunFolder(tmp_path, {**CONFIG, "freeze": ("all", "none")})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "{", r"config.json is no JSON .* repair it"),
        ("results.jsonl", '{"cell": "a"}\n', r"without a config.json"),
    ],
)
def test_a_strange_folder_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(RunMismatch, match=message):
        RunFolder(tmp_path, CONFIG)
    assert (tmp_path / name).read_text() == text


def test_a_damaged_line_is_named_by_its_number(tmp_path):
    RunFolder(tmp_path, CONFIG).append({"cell": "a"})
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(RunMismatch, match="line 2, is no JSON of a cell"):
        RunFolder(tmp_path, CONFIG)


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(NotADirectoryError, match="give another --out"):
        RunFolder(tmp_path / "run", CONFIG)


def test_a_killed_process_leaves_whole_lines(tmp_path):
    code = f"""
import os, signal
from cnnjax.files.runs import RunFolder
run = RunFolder({str(tmp_path)!r}, {CONFIG!r})
for k in range(5):
    run.append({{"cell": k}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert [line["cell"] for line in RunFolder(tmp_path, CONFIG).results] == [0, 1, 2, 3, 4]


def test_a_cell_counts_once_and_what_is_not_finite_is_null(tmp_path):
    run = RunFolder(tmp_path, CONFIG)
    for loss in (1.0, float("nan")):
        run.append({"cell": "a", "loss": loss, "losses": [float("inf"), 0.5]})
    assert RunFolder(tmp_path, CONFIG).results == [{"cell": "a", "loss": 1.0, "losses": [None, 0.5]}]
    assert (
        json.loads((tmp_path / "results.jsonl").read_text().splitlines()[1], parse_constant=pytest.fail)["loss"] is None
    )


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    code = f"""
from cnnjax.files.runs import RunFolder
with RunFolder({str(tmp_path)!r}, {CONFIG!r}).locked():
    pass
"""
    run = RunFolder(tmp_path, CONFIG)
    with run.locked():
        refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "another process is writing" in refused.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
