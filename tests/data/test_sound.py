"""Sound files drawn with SciPy, `wave` and by the byte, read back; folders of them; and all their faults."""

import contextlib
import io
import os
import pickle
import struct
import sys
import tracemalloc
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import signal
from scipy.io import wavfile

from cnnjax.data import SoundError, SoundFolder, Source, recordings, split_by_group
from cnnjax.data.listing import account
from cnnjax.data.sound import decode_sound

RATE = 8000
PATTERN = r"(?P<label>[0-9])_(?P<group>[a-z]+)_[0-9]+"


def written(values: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    wavfile.write(file, rate, values)
    return file.getvalue()


def packed(values: np.ndarray, width: int, rate: int = RATE) -> bytes:
    """Whole numbers [T, channels] in `width` bytes each, by the standard library."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(values.shape[1])
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in values.ravel()))
    return file.getvalue()


def chunk(name: bytes, content: bytes, declared: int | None = None) -> bytes:
    size = len(content) if declared is None else declared
    return struct.pack("<4sI", name, size) + content + b"\0" * (len(content) % 2)


def riff(*chunks: bytes) -> bytes:
    return struct.pack("<4sI4s", b"RIFF", 4 + sum(map(len, chunks)), b"WAVE") + b"".join(chunks)


def form(kind: int = 1, channels: int = 1, rate: int = RATE, width: int = 2, bits: int | None = None) -> bytes:
    block = channels * width
    bits = 8 * width if bits is None else bits
    return chunk(b"fmt ", struct.pack("<HHIIHH", kind, channels, rate, rate * block, block, bits))


def sine(rate: int, seconds: float = 1.0, hertz: float = 440) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


# --- files to waveforms


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_whole_numbers_of_every_width(width: int, channels: int) -> None:
    """8 bits are unsigned, all others signed; the ends of the range are -1 and just below 1."""
    half = 1 << (8 * width - 1)
    values = np.random.default_rng(width).integers(-half, half, (300, channels))
    values[:2] = [[-half], [half - 1]]
    found = decode_sound(packed(values + (half if width == 1 else 0), width), RATE, 300)
    assert found.dtype == np.float32 and found.shape == (300,)
    np.testing.assert_allclose(found, (values / half).mean(axis=1), atol=1e-7)
    assert found[0] == -1


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floats_and_what_lies_outside(kind: type) -> None:
    values = np.array([[0.25, 0.75], [-1.0, -1.0], [3.0, 2.0], [-9.0, 0.0]], kind)
    assert decode_sound(written(values), RATE, 4).tolist() == [0.5, -1, 1, -1]
    assert decode_sound(written(values[:, 0]), RATE, 4).tolist() == [0.25, -1, 1, -1]


def test_other_chunks_and_extensible_formats_are_read_without_a_warning() -> None:
    samples = np.arange(-50, 50, dtype="<i2")
    want = (samples / 32768).astype(np.float32)
    tail = b"\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"
    extensible = chunk(
        b"fmt ", struct.pack("<HHIIHHHHI", 0xFFFE, 1, RATE, 2 * RATE, 2, 16, 22, 16, 4) + b"\x01\x00" + tail
    )
    for data in (
        riff(chunk(b"JUNK", b"abc"), form(), chunk(b"odd?", b"12345"), chunk(b"data", samples.tobytes())),
        riff(form(), chunk(b"data", samples.tobytes()), chunk(b"id3 ", b"a tag"), b"rest"),
        riff(extensible, chunk(b"data", samples.tobytes())),
        b"RIFF\xff\xff\xff\xffWAVE" + form() + chunk(b"data", samples.tobytes()),
        riff(form(), chunk(b"data", samples.tobytes() + b"\x01")),  # half a sample at the end
    ):
        np.testing.assert_array_equal(decode_sound(data, RATE, 100), want)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 44101])
def test_other_rates_are_resampled(rate: int) -> None:
    data = written(sine(rate).astype(np.float32), rate)
    found = decode_sound(data, 16000, 16000)
    np.testing.assert_allclose(found[200:-200], sine(16000)[200:-200], atol=2e-3)
    if rate != 16000:
        common = np.gcd(rate, 16000)
        want = signal.resample_poly(sine(rate), 16000 // common, rate // common)
        np.testing.assert_allclose(found, want[:16000].clip(-1, 1), atol=1e-5)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_the_start_is_kept_and_zeros_follow(rate: int) -> None:
    long = np.random.default_rng(0).uniform(-0.3, 0.3, 3 * rate).astype(np.float32)
    data = written(long, rate)
    whole = decode_sound(data, RATE, 4 * RATE)
    assert (whole[3 * RATE :] == 0).all() and (whole[: 3 * RATE] != 0).mean() > 0.99
    # What is cut off is not even decoded, and still does not matter.
    for samples in (1, 100, RATE):
        np.testing.assert_allclose(decode_sound(data, RATE, samples), whole[:samples], atol=1e-7)


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "text": (b"no sound at all", "not a sound: its content is none of WAV, FLAC, Ogg .it starts with b'no sound"),
    "image": (b"\x89PNG\r\n\x1a\n" + b"0" * 50, "not a sound"),
    "other riff": (b"RIFF\x10\0\0\0AVI " + b"0" * 20, "not a sound"),
    "header only": (written(np.zeros(100, np.int16))[:12], "truncated: no samples in it"),
    "half a header": (written(np.zeros(100, np.int16))[:30], "truncated: no samples in it"),
    "cut": (written(np.zeros(100, np.int16))[:-101], "truncated: declares 200 bytes of samples and holds 99"),
    "absurd size": (
        riff(form(), chunk(b"data", b"12", 0xFFFFFFF0)),
        "declares 4294967280 bytes of samples and holds 2",
    ),
    "absurd chunk": (riff(chunk(b"LIST", b"12", 0xFFFFFFF0), form(), chunk(b"data", b"12")), "truncated: no samples"),
    "no samples": (riff(form(), chunk(b"data", b"")), "holds no samples"),
    "no format": (riff(chunk(b"data", b"1234")), "its samples have no format"),
    "no channels": (riff(form(channels=0), chunk(b"data", b"1234")), "blocks of 0 bytes for 0 channels of 16 bits"),
    "bits that do not fit": (
        riff(form(bits=24), chunk(b"data", b"1234")),
        "blocks of 2 bytes for 1 channels of 24 bits",
    ),
    "absurd rate": (riff(form(rate=4_000_000), chunk(b"data", b"1234")), "rate of 4000000 Hz; expected 1000 to 384000"),
    "no rate": (riff(form(rate=0), chunk(b"data", b"1234")), "sample rate of 0 Hz"),
    "compressed": (riff(form(kind=0x55), chunk(b"data", b"1234")), "damaged: .*MPEGLAYER3"),
    "not finite": (written(np.array([0, np.nan, np.inf], np.float32)), "NaN or infinite"),
    "beyond float32": (written(np.array([0, 1e300])), "NaN or infinite"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_files_are_named_with_the_reason(fault: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bad.wav").write_bytes(BROKEN[fault][0])
    (tmp_path / "a" / "good.wav").write_bytes(written(np.ones(10, np.float32)))
    source = SoundFolder(tmp_path, sample_rate=RATE, seconds=1)
    tracemalloc.start()
    for act in (source.verify, lambda: source.read([0, 1])):
        with pytest.raises(SoundError, match=f"1 sound of (?s:.*)a/bad.wav: .*{BROKEN[fault][1]}"):
            act()
    assert tracemalloc.get_traced_memory()[1] < 4 << 20  # however much a header declares
    tracemalloc.stop()
    left = SoundFolder(tmp_path, sample_rate=RATE, seconds=1, on_error="skip")
    assert left.names == ("a/good.wav",) and left.skipped[0].startswith("a/bad.wav: ")
    found = account({"train": left})
    assert (found.found, found.used, len(found.skipped)) == (2, {"train": 1}, 1)


def test_noise_in_place_of_a_file_never_escapes_as_another_error() -> None:
    rng, whole = np.random.default_rng(0), packed(np.zeros((50, 2)), 3)
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, 60, 3):
            data[place] = rng.integers(256)
        with contextlib.suppress(SoundError):
            assert decode_sound(bytes(data), RATE, 50).shape == (50,)


# --- FLAC and Ogg


def test_without_soundfile_the_error_gives_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    for start in (b"fLaC", b"OggS"):
        with pytest.raises(SoundError, match="FLAC and Ogg needs? .*pip install soundfile"):
            decode_sound(start + b"0" * 50, RATE, 10)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.FLAC").write_bytes(b"fLaC")
    for on_error in ("refuse", "skip"):  # a missing package is nobody's bad file
        with pytest.raises(SoundError, match="1 FLAC or Ogg files .first a/1.FLAC.*pip install soundfile"):
            SoundFolder(tmp_path, sample_rate=RATE, seconds=1, on_error=on_error)


STAND_IN = '''
import io, numpy
class SoundFile:
    """The part of soundfile's interface that is used; the file is a header and 16-bit stereo."""
    def __init__(self, file):
        data = file.read()
        self.samplerate, self.frames = numpy.frombuffer(data[4:12], "<u4").tolist()
        self.rest = numpy.frombuffer(data[12:], "<i2").reshape(-1, 2) / 32768
        if self.frames == 666:
            raise RuntimeError("Error opening: unspecified internal error.")
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def read(self, frames, dtype, always_2d):
        assert always_2d
        return self.rest[:frames].astype(dtype)
'''


def test_soundfile_is_asked_for_no_more_than_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "soundfile.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "soundfile", raising=False)
    samples = np.random.default_rng(0).integers(-9999, 9999, (300, 2), "<i2")

    def file(frames: int) -> bytes:
        return b"fLaC" + struct.pack("<II", 16000, frames) + samples.tobytes()

    want = signal.resample_poly((samples / 32768).mean(axis=1), 1, 2)
    np.testing.assert_allclose(decode_sound(file(300), RATE, 200), np.pad(want, (0, 50)), atol=1e-6)
    # More is declared than there is: no harm where it is not wanted, an error where it is.
    np.testing.assert_allclose(decode_sound(file(1 << 31), RATE, 100), want[:100], atol=1e-6)
    for frames, reason in {
        1 << 31: "truncated: declares 2147483648 samples and holds 300",
        666: "damaged: Error opening",
        0: "no samples",
    }.items():
        with pytest.raises(SoundError, match=reason):
            decode_sound(file(frames), RATE, 1000)
    sys.modules.pop("soundfile")  # undoing `monkeypatch.delitem` would bring the stand-in back


@pytest.mark.parametrize("kind, off", [("FLAC", 1e-4), ("OGG", 0.1)])
def test_soundfile_itself(kind: str, off: float) -> None:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.stack([sine(16000), np.zeros(16000)], 1), 16000, format=kind)
    found = decode_sound(file.getvalue(), RATE, RATE)
    want = signal.resample_poly(sine(16000) / 2, 1, 2)
    np.testing.assert_allclose(found[200:-200], want[200:-200], atol=off)


# --- folders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two splits of two classes, four tones a class in four encodings."""
    encodings: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda x: (x * 127 + 128).astype(np.uint8),
        lambda x: (x * 32767).astype(np.int16),
        lambda x: (x * 2147483647).astype(np.int32),
        lambda x: x.astype(np.float32),
    ]
    for split, quiet in (("train", 1.0), ("test", 0.5)):
        for c, name in enumerate(("high", "low")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i, encode in enumerate(encodings):
                tone = quiet * sine(RATE, 0.25, 2000 - 1500 * c + 10 * i)
                (tmp_path / "data" / split / name / f"{i}.wav").write_bytes(written(encode(tone)))
    return tmp_path / "data"


def test_a_folder_is_a_source_like_any_other(root: Path) -> None:
    (root / "train" / "low" / "notes.txt").write_text("no sound")
    source = SoundFolder(root, "train", sample_rate=RATE, seconds=0.5)
    assert isinstance(source, Source) and source.image_size == (4000,) and source.skipped == ()
    assert source.class_names == ("high", "low")
    assert source.names == tuple(f"{name}/{i}.wav" for name in ("high", "low") for i in range(4))
    assert source.labels.tolist() == [0] * 4 + [1] * 4 and source.labels.dtype == np.int32
    waves = source.read([5, 0])
    assert waves.shape == (2, 4000) and waves.dtype == np.float32
    np.testing.assert_allclose(waves[:, :2000], [sine(RATE, 0.25, 510), sine(RATE, 0.25, 2000)], atol=0.01)
    assert (waves[:, 2000:] == 0).all()
    source.verify()
    part = source.take([7, 2])
    assert part.names == ("low/3.wav", "high/2.wav") and part.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(part.read([0, 1]), source.read([7, 2]))
    copy = pickle.loads(pickle.dumps(part))
    np.testing.assert_array_equal(copy.read([1]), source.read([2]))
    assert copy.digest == part.digest != source.digest
    assert "8 sounds, 2 classes" in repr(source) and repr(source).startswith("SoundFolder(")
    found = account({"train": source})
    assert (found.found, found.used["train"], [row.path.rpartition("/")[2] for row in found.others]) == (
        10, 8, ["notes.txt", "test"],
    )  # fmt: skip


def test_the_digest_is_of_bytes_and_choices(root: Path) -> None:
    settings = dict(sample_rate=RATE, seconds=0.5)
    digest = SoundFolder(root, "train", **settings).digest
    os.rename(root / "train" / "high", root / "train" / "above")
    assert SoundFolder(root, "train", **settings).digest == digest
    assert SoundFolder(root, "test", **settings).digest != digest
    for other in (settings | {"seconds": 0.4}, settings | {"sample_rate": 16000, "seconds": 0.25}):
        assert SoundFolder(root, "train", **other).digest != digest
    path = root / "train" / "low" / "3.wav"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert SoundFolder(root, "train", **settings).digest != digest


def test_folders_that_are_not_as_they_should_be(root: Path) -> None:
    settings = dict(sample_rate=RATE, seconds=1)
    with pytest.raises(ValueError, match="holds the splits train, test, not classes"):
        SoundFolder(root, **settings)
    with pytest.raises(FileNotFoundError, match="did you mean 'train'"):
        SoundFolder(root, "trian", **settings)
    (root / "train" / "low" / "1.wav").rename(root / "train" / "1.mp3")
    with pytest.raises(ValueError, match=r"sample_rate: expected whole hertz from 1000 to 384000, found 44.1"):
        SoundFolder(root, "train", sample_rate=44.1, seconds=1)  # ty: ignore[invalid-argument-type]
    for seconds in (0, -1, 1e-9, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="seconds: expected a length of at least one sample"):
            SoundFolder(root, "train", sample_rate=RATE, seconds=seconds)
    with pytest.raises(ValueError, match="on_error: expected 'refuse' or 'skip', found 'ignore'"):
        SoundFolder(root, "train", **settings, on_error="ignore")  # ty: ignore[invalid-argument-type]
    for file in (root / "train" / "low").iterdir():
        file.write_bytes(b"")
    with pytest.raises(SoundError, match="no sound of class 'low'"):
        SoundFolder(root, "train", **settings, on_error="skip")
    for file in (root / "train" / "low").iterdir():
        file.rename(file.with_suffix(".mp3"))
    with pytest.raises(ValueError, match=r"\.flac, \.ogg, \.wav.*'low' \(found 3 \.mp3\)"):
        SoundFolder(root, "train", **settings)


# --- labels and groups from names


def test_no_speaker_is_on_both_sides(shared_data: Path) -> None:
    root = shared_data / "fsdd"
    sounds = recordings(root, PATTERN)
    speakers = sorted({sound.group for sound in sounds})
    assert len(sounds) == 1200 and len(speakers) == 6
    splits = {"train": speakers[:4], "test": speakers[4:]}
    found = split_by_group(root, sounds, splits, sample_rate=RATE, seconds=1)
    assert {split: len(source) for split, source in found.items()} == {"train": 800, "test": 400}
    heard = {split: {name.split("_")[1] for name in source.names} for split, source in found.items()}
    assert heard == {split: set(group) for split, group in splits.items()}
    for source in found.values():
        assert source.class_names == tuple("0123456789")
        assert [int(name[0]) for name in source.names] == source.labels.tolist()
    source = found["test"]
    for k in range(0, 400, 57):
        rate, samples = wavfile.read(root / source.names[k])
        want = np.zeros(RATE)
        want[: len(samples)] = samples[:RATE] / 32768
        np.testing.assert_array_equal(source.read([k])[0], want.astype(np.float32))
        assert rate == RATE
    assert account(found).used == {"train": 800, "test": 400}


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for digit in range(2):
        for speaker in ("ann", "bob", "cid"):
            (tmp_path / f"{digit}_{speaker}_0.wav").write_bytes(written(np.full(10, 0.5, np.float32)))
    return tmp_path


def test_groups_must_be_divided_once_and_whole(flat: Path) -> None:
    known = recordings(flat, PATTERN)

    def split(splits: dict[str, list[str]], sounds: list | None = None, **options: str) -> dict:
        return split_by_group(flat, sounds or known, splits, sample_rate=RATE, seconds=1, **options)  # ty: ignore

    with pytest.raises(ValueError, match="group 'bob' is in 'train' and in 'test'"):
        split({"train": ["ann", "bob"], "test": ["bob", "cid"]})
    with pytest.raises(ValueError, match="groups in no split: cid; put them into train, test"):
        split({"train": ["ann"], "test": ["bob"]})
    with pytest.raises(LookupError, match="no sound of group 'bop' .test.; did you mean 'bob'"):
        split({"train": ["ann", "cid"], "test": ["bop"]})
    with pytest.raises(ValueError, match="'test' lacks 0, 1"):
        split({"train": ["ann", "bob", "cid"], "test": []})
    with pytest.raises(ValueError, match="each name once"):
        split({"train": ["x"]}, [("a.wav", "0", "x")] * 2)
    with pytest.raises(ValueError, match="on_error: expected"):
        split({"train": ["ann", "bob"], "test": ["cid"]}, on_error="ignore")
    (flat / "readme.md").write_text("")
    (flat / "1_bob_0.wav").write_bytes(b"")
    with pytest.raises(SoundError, match="no sound of class '1'"):
        split({"train": ["ann", "cid"], "test": ["bob"]}, on_error="skip")
    found = split({"train": ["ann", "bob"], "test": ["cid"]}, on_error="skip")
    assert found["train"].skipped == ("1_bob_0.wav: the file is empty",)
    counts = account(found)
    assert counts.found == 7 and counts.used == {"train": 3, "test": 2} and len(counts.skipped) == 1
    assert [row.path.rpartition("/")[2] for row in counts.others] == ["readme.md"]


def test_patterns_that_do_not_fit(flat: Path) -> None:
    with pytest.raises(ValueError, match="is no regular expression: "):
        recordings(flat, "(")
    with pytest.raises(ValueError, match="lacks .*P<group>"):
        recordings(flat, "(?P<label>.)_.*")
    (flat / "1_DAN_0.wav").touch()
    with pytest.raises(ValueError, match="does not fit 1 sounds of .*: 1_DAN_0.wav"):
        recordings(flat, PATTERN)
    (flat / "none").mkdir()
    with pytest.raises(ValueError, match="no sounds .* directly in"):
        recordings(flat / "none", PATTERN)
    with pytest.raises(FileNotFoundError, match="did you mean"):
        recordings(flat / "nine", PATTERN)
