"""What bytes, texts and arrays are known by: SHA-256, everywhere."""

import hashlib
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

Bytes = bytes | memoryview | np.ndarray
"""What a digest is of, and a file is written from; arrays lie in one piece."""


def digest(*parts: Any) -> str:
    """SHA-256 of texts, bytes and arrays one after another, as hexadecimal digits; where each one ends counts.

    >>> digest("ab", "c") == digest("a", "bc"), digest(np.arange(2)) == digest(np.arange(2.0))
    (False, False)
    """
    total = hashlib.sha256()
    for item in parts:
        if isinstance(item, bytes):
            data = item
        elif isinstance(item, str):
            data = item.encode()
        else:
            array = item if isinstance(item, np.ndarray) else np.asarray(_plain(item))
            data = f"{array.dtype}{array.shape}".encode() + array.tobytes()
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def content_digest(content: Bytes) -> bytes:
    """SHA-256 of some bytes, 32 of them."""
    return hashlib.sha256(content).digest()


def joined_digest(text: str, parts: Iterable[Bytes]) -> str:
    """SHA-256 of a text and of bytes behind it, as hexadecimal digits, without holding them all at once."""
    total = hashlib.sha256(text.encode())
    for part in parts:
        total.update(part)
    return total.hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(item: Any) -> Any:
    """A random key of JAX as its numbers."""
    import jax  # data without arrays of JAX is read in processes that start without it

    is_key = isinstance(item, jax.Array) and jax.dtypes.issubdtype(item.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(item) if is_key else item
