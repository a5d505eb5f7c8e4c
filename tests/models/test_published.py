"""The list of published weights."""

import pytest

from cnnjax.models import BACKBONES, PREPROCESSING, PUBLISHED
from cnnjax.models.registry import find


def test_entries_are_found_and_whole():
    for name, entry in PUBLISHED.items():
        assert find(name) is entry
        assert entry.backbone in BACKBONES
        assert entry.preprocessing in PREPROCESSING
        assert entry.url.startswith("https://")
        assert entry.url.endswith(f"/{name}.h5")
        assert entry.include_top != ("notop" in name.replace("_", "").replace("-", ""))


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(
        LookupError, match="no published weights 'mobilenet_7_5_24_tf'; did you mean 'mobilenet_7_5_224_tf'"
    ):
        find("mobilenet_7_5_24_tf")
