"""What `cnnjax size` prints."""

import ast
import json
import sys
from pathlib import Path

import pytest

from cnnjax import sizing
from cnnjax.cli import main

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
VGG16 = [text for width, count in BLOCKS for text in [f"conv3-{width}same"] * count + ["pool2"]]
VGG16 += ["flatten", "dense4096", "dense4096", "dense1000"]


@pytest.fixture
def printed(capsys, monkeypatch):
    def run(*args, width=100):
        monkeypatch.setenv("COLUMNS", str(width))
        main(["size", *args])
        return capsys.readouterr().out

    return run


def test_table_of_the_lectures_stack(printed):
    lines = printed("32x32x3", "conv5-6", "conv5-10", "pool2", "dense10").splitlines()
    words = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert words["conv5-6"][1:] == [*"28x28x6 (32 - 5 + 2·0)/1 + 1 = 28".split(), "75", "456", "352,800", "5x5", "1"]
    assert words["conv5-10"][-5:] == ["150", "1,510", "864,000", "9x9", "1"]
    assert words["pool2"][-4:] == ["0", "0", "10x10", "2"]
    assert words["dense10"][-3:] == ["14,410", "14,400", "32x32"]
    assert words["total"] == ["total", "16,376", "1,231,200"]
    assert lines[-1] == "16,350 weights + 26 biases = 16,376 parameters"


def test_nothing_is_cut_in_100_columns(printed):
    text = printed("224x224x3", *VGG16)
    assert max(map(len, text.splitlines())) <= 100 and "…" not in text
    for whole in ("conv3-512same", "112x112x128", "138,357,544", "15,470,264,320", "404x404", "= 224, P = (1, 1)"):
        assert whole in text
    assert "A receptive field larger than the input reaches into the padding." in text


def test_a_narrow_terminal_wraps_and_cuts_nothing(printed):
    text = printed("224x224x3", *VGG16, width=50)
    assert "…" not in text and max(map(len, text.splitlines()[:60])) <= 50


def test_blank_where_channels_are_not_known(printed):
    text = printed("7", "conv3/2")
    row = next(line.split() for line in text.splitlines() if line.startswith("conv3/2"))
    assert row == [*"conv3/2 3 (7 - 3 + 2·0)/2 + 1 = 3".split(), "3", "2"]
    assert "Blank where channels are not known" in text


def test_markdown_is_a_table(printed):
    lines = printed("150x100x3", "conv3-32/2same", "--format", "markdown").splitlines()
    assert len(lines) == 5 and {line.count("|") for line in lines} == {9}
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    sizes = "ceil(150/2) = 75, P = (0, 1), ceil(100/2) = 50, P = (0, 1)"
    assert cells == ["conv3-32/2same", "75x50x32", sizes, "27", "896", "3,240,000", "3x3", "2"]


def test_json_holds_numbers(printed):
    found = json.loads(printed("15x10x3", "conv3-8+1", "pool2", "--rule", "floor", "--format", "json"))
    assert found["input"] == [15, 10, 3] and found["rule"] == "floor"
    assert [row["output"] for row in found["layers"]] == [[15, 10, 8], [7, 5, 8]]
    assert found["layers"][0] == {
        "layer": "conv3-8+1", "output": [15, 10, 8],
        "size": ["(15 - 3 + 2·1)/1 + 1 = 15", "(10 - 3 + 2·1)/1 + 1 = 10"],
        "weights_per_filter": 27, "weights": 216, "biases": 8, "parameters": 224,
        "multiplications": 27 * 150 * 8, "receptive_field": [3, 3], "receptive_field_start": [-1, -1], "jump": 1,
    }  # fmt: skip
    assert found["total"] == {"weights": 216, "biases": 8, "parameters": 224, "multiplications": 32_400}
    text = printed("7", "conv3", "--format", "json")
    open_ = json.loads(text)
    assert (
        "(7 - 3 + 2·0)/1 + 1 = 5" in text and open_["input"] == [7, None] and open_["layers"][0]["parameters"] is None
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["7", "conv3/3"], "layer 1 of 1, 'conv3/3', on 7: a filter of 3 with stride 3 does not fit an input of 7"),
        (["32x32x3"], "no layers after the input 32x32x3"),
        (["7", "conv3", "--rule", "same"], "invalid choice 'same'"),
        ([], "INPUT"),
    ],
)
def test_errors_are_told_in_a_sentence(args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["size", *args])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and message in captured.err + captured.out and "Traceback" not in captured.err


def test_sizing_imports_nothing_of_ours():
    files = sorted(Path(sizing.__file__).parent.glob("*.py"))
    for file in files:
        nodes = list(ast.walk(ast.parse(file.read_text())))
        names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        other = {name for name in names if name != "cnnjax.sizing" and not name.startswith("cnnjax.sizing.")}
        assert {name.partition(".")[0] for name in other} <= sys.stdlib_module_names, file.name
    assert len(files) == 6
