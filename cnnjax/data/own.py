"""Sources that a function of the user's gives, named by its import path."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from cnnjax.files.importing import called, imported, is_path

_NEEDS = ("image_size", "digest", "read", "__len__")


def is_own_data(data: str | os.PathLike[str]) -> bool:
    """Whether data is named by an import path; a folder of such a name is a folder.

    >>> is_own_data("cats:and:dogs.py"), is_own_data("scans.py:sources"), is_own_data("tfds:cifar10")
    (True, True, False)
    """
    return is_path(os.fspath(data)) and not os.path.isdir(data)


def open_own(path: str, image_size: Sequence[int]) -> dict[str, Any]:
    """Sources by split, as the function at an import path gives them.

    It is called with `image_size=(height, width)`, and gives a dictionary: "train", "test" and, if there is one,
    "validation". Each is a source (`cnnjax.data.Source`), such as `cnnjax.data.InMemory`.

    Raises:
        ValueError: There is no such function, it takes other arguments, or gives something else.
    """
    size = tuple(image_size)
    found = called(
        path, imported(path, "a function that gives sources", "data.py:sources"), "image_size=(height, width)",
        expected=Mapping, gives="a dictionary of sources, train and test", image_size=size,
    )  # fmt: skip
    if missing := [split for split in ("train", "test") if split not in found]:
        raise ValueError(f"{path} gives no {' and no '.join(missing)}; found {', '.join(map(str, found)) or 'nothing'}")
    for name, source in found.items():
        lacks = [attribute for attribute in _NEEDS if not hasattr(source, attribute)]
        if not hasattr(source, "labels") and getattr(source, "targets", None) is None:
            lacks.append("labels or targets")
        if lacks:
            raise ValueError(
                f"{path}: {name} is no source: {type(source).__name__} lacks {', '.join(lacks)}; "
                "cnnjax.data.InMemory makes one of arrays"
            )
        if tuple(source.image_size) != size:
            raise ValueError(f"{path}: {name} gives images of {tuple(source.image_size)}, {size} were asked for")
    return dict(found)
