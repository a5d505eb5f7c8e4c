"""From the name of a TFDS data set to its record files, prepared without TensorFlow where that is possible."""

import contextlib
import io
import json
import logging
import os
import re
import shlex
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from cnnjax.data.entries import BESIDE, holds_records
from cnnjax.data.listing import existing_folder, some
from cnnjax.runtime.nearest import nearest

# Generated code, whose members no type checker sees.
_example: Any = tf_example_pb2
_feature: Any = tf_feature_pb2

_NAME = re.compile(
    r"tfds:(?P<name>[A-Za-z]\w*)(?:[:/](?P<config>(?!\d+\.\d+\.\d+$)[\w.+-]+))??(?::(?P<version>\d+\.\d+\.\d+))?"
)
_NAME_FEATURES = ("file_name", "image/filename", "filename", "name")
_INSTALL = "pip install tensorflow tensorflow-datasets array-record importlib-resources"


def prepared_folder(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the folder of a data set's record files; prepares them where they are not there.

    TFDS downloads what it needs, writes into a folder of another name and renames it when all is there: what
    is prepared is whole.

    Args:
        name: as for `open_tfds`.
        data_dir: as for `open_tfds`.

    Raises:
        LookupError: no such data set, configuration or version.
        ValueError: a name that is none.
        OSError: no such folder, or the data set cannot be prepared here.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        folder = Path(name.removeprefix("tfds:")).expanduser()
        if not holds_records(folder):
            _refuse(folder, name)
        return folder
    builder = _builder(match["name"], match["config"], match["version"], data_dir)
    if not builder.is_prepared():
        _prepare(builder)
    return Path(builder.data_dir)


def open_builder(directory: Path) -> Any:
    """Opens a prepared data set for reading; raises `OSError` where there is none that can be read here."""
    if not holds_records(directory):
        _refuse(directory, str(directory))
    wanted = tfds.core.FileFormat.ARRAY_RECORD
    try:
        builder = tfds.builder_from_directory(directory)
        formats, stored = builder.info.available_file_formats(), builder.info.file_format
        if wanted in formats and stored != wanted:
            builder.info.set_file_format(wanted, override=True, override_if_initialized=True)
    # TFDS raises whatever its parsers meet.
    except Exception as error:
        raise OSError(f"damaged data set in {directory}: {error}") from error
    if wanted not in formats:
        raise OSError(
            f"the data set in {directory} is stored as {stored.value if stored else 'tfrecord'}; only array_record "
            f"is read without TensorFlow. Convert it where TensorFlow is installed: {_INSTALL} apache-beam && tfds "
            f"convert_format --dataset_version_dir={shlex.quote(str(directory.absolute()))} "
            "--out_file_format=array_record --num_workers=1"
        )
    return builder


def data_source(builder: Any, split: str) -> Any:
    """Random access to the records of a split or slice, as they are stored."""
    _allow_open_files(len(builder.info.splits[split].file_instructions))
    return builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)


def make_record(content: bytes, label: int, name: str, keys: Sequence[str]) -> bytes:
    """Returns the record of an encoded image, its label and name, as TFDS writes it, under the feature names `keys`.

    TFDS's own writer lets the order of the features in a record differ from process to process.
    """
    values = (
        _feature.Feature(bytes_list=_feature.BytesList(value=[content])),
        _feature.Feature(int64_list=_feature.Int64List(value=[label])),
        _feature.Feature(bytes_list=_feature.BytesList(value=[os.fsencode(name)])),
    )
    features = _feature.Features(feature=dict(zip(keys, values, strict=True)))
    return _example.Example(features=features).SerializeToString(deterministic=True)


def parse_record(record: bytes, keys: Sequence[str]) -> tuple[bytes, int, str]:
    """Returns a record's encoded image, label and name ("" where `keys` names no such feature).

    Parsed as what it is, a `tf.train.Example`: TFDS with `SkipDecoding` gives the same and takes ten times as
    long, longer than it takes to read a small file.
    """
    values = _example.Example.FromString(record).features.feature
    image, label, *name = keys
    text = os.fsdecode(values[name[0]].bytes_list.value[0]) if name else ""
    return values[image].bytes_list.value[0], values[label].int64_list.value[0], text


def _allow_open_files(count: int) -> None:
    """Raises this process's limit of open files where it can: every record file stays open once it is read."""
    try:
        import resource
    except ImportError:  # a platform without such limits
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * count + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def feature_names(builder: Any) -> tuple[str, ...]:
    """Returns the names of the features that are the image, its label and, if there is one, its name.

    They are those of `supervised_keys`, or else the only image and the only class label.

    Raises:
        ValueError: neither says; the message lists the features.
    """
    features = builder.info.features
    known = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    images = [
        name
        for name, f in known.items()
        if isinstance(f, tfds.features.Image)
        and not isinstance(f, tfds.features.LabeledImage)
        and np.dtype(f.np_dtype) in (np.uint8, np.uint16)
    ]
    labels = [name for name, f in known.items() if isinstance(f, tfds.features.ClassLabel)]
    keys = [key for key in builder.info.supervised_keys or () if isinstance(key, str)]
    chosen = []
    for kind, names in (("image (Image of uint8 or uint16)", images), ("label (ClassLabel)", labels)):
        supervised = [key for key in keys if key in names] or names
        if len(supervised) != 1:
            held = ", ".join(f"{name}: {type(f).__name__}" for name, f in known.items()) or type(features).__name__
            raise ValueError(
                f"{builder.info.full_name} does not say which feature is the {kind}: its supervised_keys are "
                f"{builder.info.supervised_keys}, its features {held}"
            )
        chosen += supervised
    named = [name for name in _NAME_FEATURES if isinstance(known.get(name), tfds.features.Text)]
    return (*chosen, *named[:1])


def described(builder: Any) -> str:
    """The splits and their sizes, for an error."""
    return some([f"{name} ({info.num_examples})" for name, info in builder.info.splits.items()]) or "none"


def _refuse(folder: Path, name: str) -> NoReturn:
    """Raises the error that names the nearest right answer for what is no data set."""
    if name.startswith("tfds:") and os.sep not in name and not folder.is_dir():
        raise ValueError(f"expected tfds:NAME, tfds:NAME:CONFIG, tfds:NAME:CONFIG:VERSION or a folder, found {name!r}")
    existing_folder(folder)
    state = folder / BESIDE / "pack.json"
    if state.exists():
        source = json.loads(state.read_text())["folder"]
        command = f"cnnjax pack {shlex.quote(source)} --out {shlex.quote(str(folder))}"
        raise OSError(f"{folder} holds an unfinished pack of {source}; this finishes it: {command}")
    inside = sorted(
        str(found.parent) for depth in ("*", "*/*", "*/*/*") for found in folder.glob(f"{depth}/dataset_info.json")
    )
    hint = f"; did you mean {some(inside)}?" if inside else ""
    raise FileNotFoundError(f"no TFDS data set in {folder}: it holds no dataset_info.json{hint}")


@contextlib.contextmanager
def quiet(*, bars: bool = True) -> Generator[None]:
    """Keeps TFDS's prints and advice from the terminal; errors pass, and its progress bars if `bars`."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    errors = contextlib.nullcontext() if bars else contextlib.redirect_stderr(io.StringIO())
    try:
        with contextlib.redirect_stdout(io.StringIO()), errors:
            yield
    finally:
        logger.setLevel(level)


def _builder(name: str, config: str | None, version: str | None, data_dir: str | os.PathLike[str] | None) -> Any:
    full = name + (f"/{config}" if config else "") + (f":{version}" if version else "")
    try:
        with quiet():
            return tfds.builder(full, data_dir=None if data_dir is None else os.fspath(data_dir))
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        near = nearest(name.lower(), known, 0.6)
        hint = f"; did you mean 'tfds:{near}'?" if near else f"; TFDS {tfds.__version__} knows {len(known)} others"
        raise LookupError(f"no TFDS data set {name!r}{hint}") from None
    except OSError:
        raise
    # TFDS raises ValueError, AssertionError or whatever the data set's own code raises.
    except Exception as error:
        if _missing_module(error):
            _refuse_preparing(full, data_dir, error)
        configs = list(tfds.builder_cls(name).builder_configs)
        if config and config not in configs:
            near = nearest(config, configs, 0.6)
            held = f"; did you mean 'tfds:{name}:{near}'?" if near else f": it has {some(configs) or 'none'}"
            raise LookupError(f"no configuration {config!r} of {name}{held}") from error
        raise LookupError(_one_line(error)) from error


def _prepare(builder: Any) -> None:
    """Lets TFDS download and write the records; its progress bars show."""
    full, root = builder.info.full_name, builder.data_dir_root
    try:
        with quiet():
            builder.download_and_prepare(file_format="array_record")
    # Whatever the data set's own code and the network raise.
    except Exception as error:
        # Another process may have prepared the same and renamed its folder first.
        if not holds_records(builder.data_dir):
            name, *config, version = full.split("/")
            _refuse_preparing("/".join([name, *config]) + f":{version}", root, error)


def _refuse_preparing(full: str, root: str | os.PathLike[str] | None, error: Exception) -> NoReturn:
    missing = _missing_module(error)
    if missing == "tensorflow":
        place = f", data_dir={json.dumps(os.path.abspath(root))}" if root else ""
        program = (
            f'import tensorflow_datasets as tfds; tfds.builder("{full}"{place})'
            '.download_and_prepare(file_format="array_record")'
        )
        raise OSError(
            f"TFDS needs TensorFlow to prepare {full}, and only to prepare it. Run this where TensorFlow can be "
            f"installed, and copy the folder it makes here: {_INSTALL} && python -c {shlex.quote(program)}"
        ) from error
    if missing:
        raise OSError(f"TFDS needs the Python module {missing!r} to prepare {full}: pip install {missing}") from error
    raise OSError(f"TFDS cannot prepare {full} in {root}: {_one_line(error)}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _missing_module(error: Exception) -> str | None:
    """The module that could not be imported, if that was the cause."""
    names = [cause.name for cause in _causes(error) if isinstance(cause, ImportError) and cause.name]
    return names[-1].partition(".")[0] if names else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
