"""What can go wrong with a checkpoint."""

import errno
import os


class CheckpointMismatch(ValueError):
    """A checkpoint does not hold what is asked of it."""


class CorruptCheckpoint(OSError):
    """A checkpoint is not what was written."""


class SaveFailed(OSError):
    """A checkpoint could not be written."""


def reason(error: BaseException) -> str:
    """Why writing failed, in a few words.

    >>> reason(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))), reason(ValueError("in a/0.0: Permission denied [13]"))
    ('No space left on device', 'Permission denied')
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # TensorStore raises ValueError, with the system's words somewhere in a page of text.
    text = str(error)
    found = [said for said in map(os.strerror, errno.errorcode) if said in text]
    return found[0] if found else f"{type(error).__name__}: {text.strip().partition(chr(10))[0][:200]}"
