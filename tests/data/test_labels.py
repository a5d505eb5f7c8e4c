"""Tables of labels beside a folder: what they open, and every fault by its line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjax.data import LabelFileError, account, open_labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(12):
        place = tmp_path / ("deep/er" if k % 2 else "flat")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * k, 0, 0)).save(place / f"{k}.png")
    return tmp_path


def path(k):
    return f"{'deep/er' if k % 2 else 'flat'}/{k}.png"


def table(folder, text):
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return folder / "labels.csv"


def test_numbers_are_read_in_the_order_of_the_lines(folder):
    lines = "".join(f"{path(k)}, {('train', 'Val', 'testing')[k % 3]},{k / 4},{k}e1\n" for k in (3, 1, 2, 0, 4))
    found = open_labels(folder, table(folder, "\ufefffile,split,a,b\n" + lines), "regression", image_size=(8, 8))
    assert list(found) == ["train", "validation", "test"]
    assert found["train"].names == (path(3), path(0)) and found["train"].target_names == ("a", "b")
    np.testing.assert_array_equal(found["train"].targets, np.float32([[0.75, 30], [0, 0]]))
    assert found["test"].read([0])[0, 0, 0].tolist() == [40, 0, 0]
    assert str(account(found)) == "13 files: 2 train, 2 validation, 1 test; 0 skipped, 8 other files"
    one = open_labels(folder, folder / "labels.csv", "regression", ["b"], whole=True)["all"]
    assert one.targets.ravel().tolist() == [30, 10, 20, 0, 40] and one.class_names == ()


def test_classes_are_sorted_and_split_by_chance_by_the_names_alone(folder):
    lines = [f"{path(k)},{('dog', 'cat')[k % 2]}\n" for k in range(12)]
    found = open_labels(folder, table(folder, "file,kind\n" + "".join(lines)))
    assert found["train"].class_names == ("cat", "dog") and found["train"].targets is None
    assert {kind: np.bincount(s.labels).tolist() for kind, s in found.items()} == {
        "train": [4, 4], "validation": [1, 1], "test": [1, 1],
    }  # fmt: skip
    other = open_labels(folder, table(folder, "file,kind\n" + "".join(reversed(lines))))
    for kind, source in found.items():
        assert sorted(source.names) == sorted(other[kind].names)
    given = open_labels(folder, folder / "labels.csv", classes=("dog", "cat"), whole=True)["all"]
    assert given.class_names == ("dog", "cat") and [given.labels[k] for k in range(2)] == [1, 0]


def test_bad_images_are_skipped_with_their_targets(folder):
    (folder / path(1)).write_bytes(b"no image")
    file = table(
        folder, "file,split,n\n" + "".join(f"{path(k)},{'train' if k < 6 else 'test'},{k}\n" for k in range(9))
    )
    found = open_labels(folder, file, "regression", on_error="skip", image_size=(8, 8))
    assert found["train"].targets.ravel().tolist() == [0, 2, 3, 4, 5] and "1.png" in found["train"].skipped[0]
    with pytest.raises(ValueError, match=r"1 image .* cannot be decoded"):
        open_labels(folder, file, "regression", image_size=(8, 8))["train"].verify()


def test_all_faults_are_named_together_with_their_lines(folder):
    text = f"file,split,x,y\n{path(0)},train,1,0\n{path(0)},train,1,1\nnone.png,tran,1,1\n../a.png,test,2,\n"
    with pytest.raises(LabelFileError) as error:
        open_labels(folder, table(folder, text + f"{path(2)},test,1\n"), "multilabel")
    said = str(error.value)
    for part in (
        "has 6 faults", f"line 3: {path(0)} stands in line 2 already", "line 4: no file none.png in",
        "line 4: split: expected train, validation or test, found 'tran'", "line 5: ../a.png lies outside of",
        "line 5: y is empty", "line 6: 3 cells, the header has 4",
    ):  # fmt: skip
        assert part in said, said


@pytest.mark.parametrize(
    ("text", "kind", "columns", "message"),
    [
        (
            "file,n\nflat/0.png,1;5\n",
            "regression",
            (),
            "line 2: n: expected a finite number, with a point, found '1;5'",
        ),
        ("file,n\nflat/0.png,nan\n", "regression", (), "line 2: n: expected a finite number"),
        ("file,n\nflat/0.png,2\n", "multilabel", (), "line 2: n: expected 0 or 1, found '2'"),
        ("name,n\nflat/0.png,2\n", "regression", (), "line 1: no column 'file'"),
        ("file,n,n\nflat/0.png,2,2\n", "regression", (), "column n stands there more than once"),
        ("file,age\nflat/0.png,2\n", "regression", ("ages",), "no column 'ages' of targets; did you mean 'age'?"),
        ("file,a,b\nflat/0.png,x,y\n", "classification", (), "one column of class names, found a, b"),
        ("file,a\nflat/0.png,x\n", "classification", (), "needs two classes or more, found x"),
        ("file\nflat/0.png\n", "regression", (), "a column without a name, or none"),
        ("file,n\n", "regression", (), "names no images"),
        ('file,n\n"flat/0.png,1\n', "regression", (), "is no CSV file in UTF-8"),
        ("file,split,k\nflat/0.png,test,a\nflat/2.png,train,b\n", "classification", (), "no training image of class a"),
        ("file,k\nflat/0.png,a\nflat/2.png,b\n", "classification", (), "too few images for 3 splits"),
    ],
)
def test_a_table_that_is_none_is_refused(folder, text, kind, columns, message):
    with pytest.raises(LabelFileError, match=message.replace("?", r"\?")):
        open_labels(folder, table(folder, text), kind, columns)


def test_no_file_and_no_kind(folder):
    with pytest.raises(FileNotFoundError, match="with labels"):
        open_labels(folder, folder / "none.csv")
    with pytest.raises(ValueError, match="expected one of classification, multilabel, regression"):
        open_labels(folder, table(folder, "file,n\n"), "clusters")


def test_classes_that_are_given_are_the_only_ones(folder):
    file = table(folder, "file,k\nflat/0.png,b\n")
    with pytest.raises(LabelFileError, match="line 2: k: 'b' is none of the classes a, c"):
        open_labels(folder, file, classes=("a", "c"), whole=True)
