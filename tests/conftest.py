"""What all tests share."""

import gc
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    # Where no bytecode is kept, each of the tests' many processes would compile a thousand modules again, for more
    # than a second: they share it for as long as the tests run. Processes that pytest-xdist starts inherit the folder.
    _bytecode = tempfile.TemporaryDirectory(prefix="bytecode-", ignore_cleanup_errors=True)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = _bytecode.name
    sys.dont_write_bytecode = False

import pytest

# What JAX traces and caches lives to the end; the collector need not walk it all the time.
gc.set_threshold(50_000, 20, 100)

_LONGEST = ("test_survival_of_hosts", "test_survival", "test_ablation", "test_devices")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The modules that take minutes come first, so that two test processes end together."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and weights; tests that need it are skipped where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CNNJAX_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"real images and weights not found at {folder}; set CNNJAX_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder of drawn images, train and test, two classes that differ in their stripes' direction."""
    import numpy as np
    from PIL import Image

    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    wave = 100 * np.sin(np.arange(48) * 0.7)
    for split, count in (("train", 22), ("test", 9)):
        for name, stripes in (("across", wave[:, None]), ("down", wave[None, :])):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = 128 + np.broadcast_to(stripes, (48, 48)) + rng.normal(0, 20, (48, 48))
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{k}.png")
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("CNNJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def six_blocks() -> Iterator[None]:
    """A MobileNet that is made now ends after six of its thirteen blocks, which are of all kinds: for tests that trace
    and compile it again and again."""
    module = importlib.import_module("cnnjax.models.mobilenet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCKS", module._BLOCKS[:6])
        yield


@contextmanager
def _optimizing(most: bool) -> Iterator[None]:
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", not most)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def compiled_fast() -> Iterator[None]:
    """LLVM's optimizations left out, of small networks whose compiling takes longer than they run; XLA's stay.

    What such a module compares is compiled alike: what other modules have compiled is not found.
    """
    import jax

    jax.clear_caches()
    with _optimizing(False):
        yield
    jax.clear_caches()


@pytest.fixture
def optimized() -> Iterator[None]:
    """A test in such a module whose programs run longer than they compile."""
    with _optimizing(True):
        yield
