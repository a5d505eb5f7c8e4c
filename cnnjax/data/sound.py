"""Sound files to waveforms, and folders of them as a source."""

import functools
import importlib.util
import io
import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnjax.data.folder import Folder
from cnnjax.data.listing import Listing, existing_folder, shown, some
from cnnjax.data.splitting import OnError, checked_on_error
from cnnjax.runtime.nearest import unknown

EXTENSIONS = (".flac", ".ogg", ".wav")
"""The endings that are listed, in any case; what a file is, its content decides."""

SOUND_CHOICES = "mean of the channels; polyphase resampling; start kept, zeros after the end; clipped to -1..1; v1"
"""Every choice that decides a sample, part of a source's digest: raise the version when values change."""

RATES = (1_000, 384_000)
"""The sample rates that a file may declare, in hertz."""

_INSTALL = "needs the package soundfile: pip install soundfile"


class SoundError(ValueError):
    """One or more sounds cannot be decoded; the message names each and says why."""


def decode_sound(data: bytes, sample_rate: int, samples: int) -> np.ndarray:
    """Decodes the start of a sound file to f32[samples] in -1..1 at `sample_rate`.

    WAV (integers of 8, 16, 24 and 32 bits, floats of 32 and 64) is read by SciPy, FLAC and Ogg by soundfile
    if that is installed. Channels are averaged, other rates are resampled by
    `scipy.signal.resample_poly`, a longer sound is cut and a shorter one is followed by zeros, as
    `keras.utils.audio_dataset_from_directory` does. What lies outside of -1..1 is clipped.

    Args:
        data: the whole content of the file.
        sample_rate: in hertz.
        samples: length of the result.

    Raises:
        SoundError: the bytes are no such sound, hold no samples or fewer than their header declares.

    >>> decode_sound(b"", 8000, 8000)
    Traceback (most recent call last):
    cnnjax.data.sound.SoundError: the file is empty
    """
    if not data:
        raise SoundError("the file is empty")
    # No more is decoded than is asked for, however much a file holds or declares.
    reads = functools.partial(_span, sample_rate=sample_rate, samples=samples)
    try:
        if data[:4] in (b"fLaC", b"OggS"):
            rate, channels = _by_soundfile(data, reads)
        elif data[:4] == b"RIFF" and data[8:12] == b"WAVE":
            rate, channels = _by_scipy(data, reads)
        else:
            raise SoundError(f"not a sound: its content is none of WAV, FLAC, Ogg (it starts with {data[:12]!r})")
        if not np.isfinite(channels).all():
            raise SoundError("holds samples that are NaN or infinite")
        waveform = _resample(channels.mean(axis=1), rate, sample_rate)[:samples]
    except SoundError:
        raise
    # The parsers raise whatever they meet: ValueError, struct.error, LibsndfileError, ...
    except Exception as error:
        raise SoundError(f"damaged: {str(error) or type(error).__name__}") from error
    return np.pad(waveform.clip(-1, 1), (0, samples - len(waveform)))


def _span(rate: int, sample_rate: int, samples: int) -> int:
    """How many of a file's samples decide the first `samples` at another rate."""
    if not RATES[0] <= rate <= RATES[1]:
        raise SoundError(f"declares a sample rate of {rate} Hz; expected {RATES[0]} to {RATES[1]}")
    up, down = _ratio(rate, sample_rate)
    return -(-samples * down // up) + 10 * max(up, down) // up + 1


def _ratio(rate: int, sample_rate: int) -> tuple[int, int]:
    common = math.gcd(rate, sample_rate)
    return sample_rate // common, rate // common


def _resample(waveform: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    if rate == sample_rate:
        return waveform
    from scipy.signal import resample_poly

    return resample_poly(waveform, *_ratio(rate, sample_rate))


def _by_scipy(data: bytes, reads: Callable[[int], int]) -> tuple[int, np.ndarray]:
    """Returns a WAV file's sample rate and its first samples f32[n, channels]."""
    from scipy.io import wavfile

    form, start, declared = _chunks(data)
    if len(form) < 16:
        raise SoundError("damaged: its samples have no format (no whole fmt chunk before them)")
    channels, rate, _, block, bits = struct.unpack_from("<HIIHH", form, 2)
    if not block or block != channels * -(-bits // 8):
        raise SoundError(f"damaged: declares blocks of {block} bytes for {channels} channels of {bits} bits")
    if declared > len(data) - start:
        raise SoundError(f"truncated: declares {declared} bytes of samples and holds {len(data) - start}")
    length = min(declared // block, reads(rate)) * block
    if not length:
        raise SoundError("holds no samples")
    # SciPy gets a plain file of just these samples: it warns of other chunks and believes every size.
    parts = [(b"fmt ", form), (b"data", data[start : start + length])]
    body = b"".join(struct.pack("<4sI", name, len(part)) + part + b"\0" * (len(part) % 2) for name, part in parts)
    rate, found = wavfile.read(io.BytesIO(struct.pack("<4sI4s", b"RIFF", 4 + len(body), b"WAVE") + body))
    found = found.reshape(len(found), -1)
    if found.dtype == np.uint8:
        return rate, (found.astype(np.float32) - 128) / 128
    scale = 1.0 if found.dtype.kind == "f" else -float(np.iinfo(found.dtype).min)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is refused
        return rate, (found / scale).astype(np.float32)


def _chunks(data: bytes) -> tuple[bytes, int, int]:
    """Returns a WAV file's format, where its samples start, and how many bytes of them it declares."""
    form, place = b"", 12
    while place + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, place)
        place += 8
        if name == b"data":
            return form, place, size
        if name == b"fmt ":
            form = data[place : place + size]
        place += size + size % 2
    raise SoundError("truncated: no samples in it (no data chunk)")


def _by_soundfile(data: bytes, reads: Callable[[int], int]) -> tuple[int, np.ndarray]:
    """Returns a FLAC or Ogg file's sample rate and its first samples f32[n, channels]."""
    try:
        soundfile: Any = importlib.import_module("soundfile")
    except (ImportError, OSError) as error:  # OSError: the package is there, its library is not
        raise SoundError(f"FLAC and Ogg {_INSTALL} ({error})") from None
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        wanted = min(file.frames, reads(file.samplerate))
        found = file.read(wanted, dtype="float32", always_2d=True)
    if not wanted:
        raise SoundError("holds no samples")
    if len(found) < wanted:
        raise SoundError(f"truncated: declares {file.frames} samples and holds {len(found)}")
    return file.samplerate, found


class Recording(NamedTuple):
    """A sound of a folder without subfolders for classes.

    Attributes:
        name: its path below the folder, with `/`.
        label: the name of its class.
        group: what must not be on both sides of a split: its speaker, the tape it was cut from.
    """

    name: str
    label: str
    group: str


class SoundFolder(Folder):
    """The sounds of a folder, one subfolder a class: `root/split/class/*.wav`, listed as `Folder` lists images.

    Args:
        root: the folder that holds the classes, or the splits if `split` is named.
        split: the name of a subfolder of `root`, as it is spelt there.
        sample_rate: in hertz; sounds of other rates are resampled.
        seconds: length of what `read` gives; see `decode_sound` for how sounds are cut and filled up.
        on_error: "refuse" raises `SoundError` for sounds that cannot be decoded; "skip" leaves them out and
            lists them in `skipped`.

    Attributes:
        image_size: (samples,), the shape of one waveform.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: `root` or `split` is not a readable folder.
        ValueError: no class, a class without sounds, splits where classes were expected, or a rate or length
            that is not positive.
        SoundError: FLAC or Ogg files, and soundfile is not installed.

    >>> import tempfile; from scipy.io import wavfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ("no", "yes"):
    ...         os.mkdir(f"{root}/{name}")
    ...         wavfile.write(f"{root}/{name}/1.wav", 16000, np.full(8000, 2**14, np.int16))
    ...     source = SoundFolder(root, sample_rate=16000, seconds=0.75)
    ...     source.class_names, source.names, source.read([0, 1])[:, [0, 7999, 8000]].tolist()
    (('no', 'yes'), ('no/1.wav', 'yes/1.wav'), [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])
    """

    _what = "sound"
    _error = SoundError
    _endings = EXTENSIONS

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str | None = None,
        *,
        sample_rate: int,
        seconds: float,
        on_error: OnError = "refuse",
    ) -> None:
        self._tune(sample_rate, seconds)
        self._open(root, split, on_error)

    def _tune(self, sample_rate: int, seconds: float) -> None:
        if not RATES[0] <= sample_rate <= RATES[1] or int(sample_rate) != sample_rate:
            raise ValueError(f"sample_rate: expected whole hertz from {RATES[0]} to {RATES[1]}, found {sample_rate}")
        samples = round(seconds * sample_rate) if 0 < seconds < math.inf else 0
        if samples < 1:
            raise ValueError(f"seconds: expected a length of at least one sample, found {seconds}")
        self.sample_rate, self.image_size = int(sample_rate), (samples,)

    def _hold(self, listing: Listing, class_names: tuple[str, ...], on_error: OnError) -> None:
        # Said at once, whatever `on_error`: a file is not bad because a package is missing.
        needs = [name for name in listing.names if name.lower().endswith((".flac", ".ogg"))]
        if needs and importlib.util.find_spec("soundfile") is None:
            raise SoundError(
                f"{listing.root} holds {len(needs)} FLAC or Ogg files (first {shown(needs[0])}): {_INSTALL}"
            )
        super()._hold(listing, class_names, on_error)

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.image_size

    @property
    def _choices(self) -> str:
        return f"{SOUND_CHOICES}; {self.sample_rate} Hz; {self.image_size}"

    def _load(self, content: bytes) -> np.ndarray:
        return decode_sound(content, self.sample_rate, self.image_size[0])

    def _check(self, content: bytes) -> None:
        self._load(content)

    @classmethod
    def _of(cls, root: Path, sounds: Sequence[Recording], sample_rate: int, seconds: float) -> "SoundFolder":
        """Returns a source of the sounds given, whose classes are all their labels."""
        names = tuple(sound.name for sound in sounds)
        if len(set(names)) < len(names) or not names:
            raise ValueError(f"sounds of {root}: expected at least one, each name once, found {len(names)} names")
        classes, labels = np.unique([sound.label for sound in sounds], return_inverse=True)
        given = {name.partition("/")[0] for name in names}
        with os.scandir(existing_folder(root)) as entries:
            others = {e.name: "not among the sounds given" for e in entries if e.name not in given}
        listing = Listing(root, root, names, labels.astype(np.int32), others, len(names) + len(others))
        source = cls.__new__(cls)
        source._tune(sample_rate, seconds)
        source._hold(listing, tuple(classes.tolist()), "refuse")
        return source


def recordings(root: str | os.PathLike[str], pattern: str) -> list[Recording]:
    """Takes labels and groups from the names of the sounds that lie directly in a folder, sorted by name.

    Args:
        root: the folder.
        pattern: a regular expression for a whole name without its ending, with the named groups `label` and
            `group`: `r"(?P<label>[0-9])_(?P<group>[a-z]+)_[0-9]+"` for `7_jackson_32.wav`.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: `root` is not a readable folder.
        ValueError: a pattern that is none or lacks a group, no sounds, or names that it does not fit.
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from None
    if missing := {"label", "group"} - set(wanted.groupindex):
        raise ValueError(f"pattern {pattern!r} lacks (?P<{sorted(missing)[0]}>...)")
    with os.scandir(existing_folder(Path(root))) as entries:
        names = sorted(e.name for e in entries if e.name.lower().endswith(EXTENSIONS) and not e.is_dir())
    if not names:
        raise ValueError(f"no sounds ({', '.join(EXTENSIONS)}) directly in {root}")
    fits = [wanted.fullmatch(os.path.splitext(name)[0]) for name in names]
    if strange := [
        shown(n) for n, fit in zip(names, fits, strict=True) if not fit or None in fit.group("label", "group")
    ]:
        raise ValueError(f"pattern {pattern!r} does not fit {len(strange)} sounds of {root}: {some(strange)}")
    return [Recording(name, fit["label"], fit["group"]) for name, fit in zip(names, fits, strict=True) if fit]


def split_by_group(
    root: str | os.PathLike[str],
    sounds: Iterable[Recording | tuple[str, str, str]],
    splits: Mapping[str, Sequence[str]],
    *,
    sample_rate: int,
    seconds: float,
    on_error: OnError = "refuse",
) -> dict[str, SoundFolder]:
    """Splits sounds so that no group (no speaker, say) is on both sides.

    Args:
        root: the folder that the names are below.
        sounds: (name, label, group) of each, from `recordings` or from a table of your own.
        splits: the groups of each split; every group is in exactly one.
        sample_rate: as for `SoundFolder`, like `seconds` and `on_error`.
        seconds: length of a waveform.
        on_error: "refuse" or "skip".

    Returns:
        A source for each split, with the same classes (all labels, sorted), sounds in the order given.

    Raises:
        ValueError: a group in no split or in two, a name given twice, or a split that lacks a class.
        LookupError: a group that no sound has; the nearest is named.
        As `SoundFolder` otherwise.

    >>> import tempfile; from scipy.io import wavfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ("0_ann_0", "1_ann_0", "0_bob_0", "1_bob_0"):
    ...         wavfile.write(f"{root}/{name}.wav", 8000, np.zeros(8000, np.float32))
    ...     sounds = recordings(root, r"(?P<label>[0-9])_(?P<group>[a-z]+)_[0-9]+")
    ...     splits = {"train": ["ann"], "test": ["bob"]}
    ...     {k: v.names for k, v in split_by_group(root, sounds, splits, sample_rate=8000, seconds=1).items()}
    {'train': ('0_ann_0.wav', '1_ann_0.wav'), 'test': ('0_bob_0.wav', '1_bob_0.wav')}
    """
    checked_on_error(on_error)
    rows = [Recording(*sound) for sound in sounds]
    whole = SoundFolder._of(Path(root), rows, sample_rate, seconds)
    place, classes = _places({row.group for row in rows}, splits), whole.class_names
    where = np.array([place[row.group] for row in rows])
    parts = {split: whole.take(np.flatnonzero(where == split)) for split in splits}
    lacks = {split: sorted(set(range(len(classes))) - set(part.labels.tolist())) for split, part in parts.items()}
    if any(lacks.values()):
        faults = [f"{split!r} lacks {some([classes[c] for c in gone])}" for split, gone in lacks.items() if gone]
        raise ValueError(f"the splits of {root} must hold the same classes, but " + "; ".join(faults))
    if on_error == "skip":
        for part in parts.values():
            part.skip_undecodable()
    return parts


def _places(groups: set[str], splits: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Returns the split of every group; raises where that is none or two."""
    place: dict[str, str] = {}
    for split, members in splits.items():
        for group in members:
            if group not in groups:
                raise LookupError(unknown("sound of group", group, sorted(groups), f"({split})"))
            if group in place:
                raise ValueError(f"group {group!r} is in {place[group]!r} and in {split!r}; keep it in one")
            place[group] = split
    if left := sorted(groups - set(place)):
        raise ValueError(
            f"groups in no split: {some(left)}; put them into {some(list(splits))}, or leave out their sounds"
        )
    return place
