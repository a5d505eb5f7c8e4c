"""A folder of sounds is a data set like any other: `cnnjax ablate --data SOUNDS --sample-rate 8000`."""

import json

import numpy as np
import pytest
from scipy.io import wavfile

from cnnjax.cli import main

pytestmark = pytest.mark.usefixtures("compiled_fast")


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Low and high tones in noise, 16 and 8 of each."""
    root, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    time = np.arange(4000) / 8000
    for split, count in (("train", 16), ("test", 8)):
        for name, pitch in (("low", 300), ("high", 1500)):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                wave = np.sin(2 * np.pi * pitch * rng.uniform(0.8, 1.2) * time) + 0.1 * rng.normal(size=4000)
                wavfile.write(root / split / name / f"{k}.wav", 8000, (8000 * wave).astype(np.int16))
    return root


def test_sounds_are_swept_by_their_option(tones, tmp_path):
    options = ["--sample-rate", "8000", "--seconds", "0.5", "--image-size", "48", "--head", "linear"]
    options += ["--freeze", "all", "none", "--seeds", "1", "--epochs", "8", "--batch-size", "8", "--optimizer", "adam"]
    main(
        [
            "ablate",
            "--data",
            str(tones),
            "--backbone",
            "lecture_cnn",
            *options,
            "--out",
            f"{tmp_path}/run",
            "--store",
            f"{tmp_path}/store",
        ]
    )
    frozen, free = (json.loads(line) for line in sorted((tmp_path / "run" / "results.jsonl").read_text().splitlines()))
    assert {frozen["freeze"], free["freeze"]} == {"all", "none"}
    free = max(frozen, free, key=lambda record: record["trainable_parameters"])
    assert free["test_accuracy"] >= 0.9
    assert sum(record["decoded_images"] for record in (frozen, free)) >= 48


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sample-rate", "8000", "--augment", "lecture"], "sample_rate is for a folder of sounds"),
        (["--sample-rate", "8000", "--data", "train"], "no folder train and no folder test of classes of sounds"),
    ],
)
def test_what_does_not_fit_sounds_is_said(tones, options, message, capsys, monkeypatch):
    monkeypatch.chdir(tones)
    with pytest.raises(SystemExit):
        main(["ablate", *([] if "--data" in options else ["--data", "."]), *options])
    assert message in " ".join(capsys.readouterr().err.split())
