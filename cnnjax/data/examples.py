"""What sources of files and of records have in common: names, labels, a digest, and what cannot be decoded."""

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np

from cnnjax.data.listing import shown
from cnnjax.data.pixels import PIXEL_CHOICES, RESIZINGS, ImageError, Resizing, Scale, scale_choice
from cnnjax.data.source import as_indices
from cnnjax.files.digests import joined_digest

_SHOWN = 20


class Examples:
    """Named and labelled examples in a row, each of which can be decoded or not.

    Attributes:
        names: N names.
        labels: i32[N], classes; or what is to be learned instead.
        class_names: By label; none where the labels are no classes.
        image_size: Height and width that an image is resized to.
        skipped: Names and reasons of the examples that were left out.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    image_size: tuple[int, ...]
    skipped: tuple[str, ...] = ()
    resizing: Resizing
    scale: Scale | None

    # What a source of other examples changes, with `_choices`.
    _what: str = "image"
    _error: type[ValueError] = ImageError
    _by_row: ClassVar[tuple[str, ...]] = ("labels",)
    """Attributes with a row an example."""

    _faults: dict[int, str] | None = None
    """Why an example cannot be decoded, by index; None until all were."""
    _digest: str | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the examples' bytes in order, the size and the pixel choices; computed once.

        A packed folder has that of the folder, so that features that were stored for one serve the other.
        """
        if self._digest is None:
            self._digest = joined_digest(f"{self._choices}; {len(self)}", [self._read_hashes()])
        return self._digest

    def verify(self) -> None:
        """Decode every example once, so that a bad one is known before long work starts. A second call is free.

        Raises:
            ValueError: `ImageError` or `SoundError`, which names the examples that cannot be decoded (up to 20, and
                their number), with the reasons.
            OSError: A record that cannot be read, or is not the one that was listed.
        """
        self._refuse(self._inspect())

    def take(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Return a source of the examples at `indices` alone, in that order, with the same classes."""
        chosen = as_indices(indices, len(self))
        part = copy.copy(self)
        part.names, part._digest = tuple(self.names[i] for i in chosen), None
        for name in self._by_row:
            if (rows := getattr(self, name)) is not None:
                setattr(part, name, rows[chosen])
        if self._faults is not None:
            part._faults = {new: self._faults[i] for new, i in enumerate(chosen.tolist()) if i in self._faults}
        return part

    def skip_undecodable(self) -> None:
        """Decode every example once and leave out those that cannot be, listed in `skipped`.

        Raises:
            ValueError: `ImageError` or `SoundError`: a class of which no example is left.
        """
        faults = self._inspect()
        skipped = tuple(f"{shown(self.names[i])}: {shown(reason)}" for i, reason in sorted(faults.items()))
        kept = self.take(np.delete(np.arange(len(self)), sorted(faults)))
        names = self.class_names or ("any",)
        before, after = (part.labels if self.class_names else np.zeros(len(part), int) for part in (self, kept))
        lost = np.setdiff1d(before, after)
        if lost.size:
            gone = ", ".join(repr(names[c]) for c in lost)
            raise self._error(
                f"no {self._what} of class {gone} {self._where} can be decoded:\n  " + "\n  ".join(skipped[:_SHOWN])
            )
        vars(self).update(vars(kept), skipped=skipped)

    @property
    def _choices(self) -> str:
        """What an example's bytes become, in words."""
        return f"{PIXEL_CHOICES + RESIZINGS[self.resizing] + scale_choice(self.scale)}; {self.image_size}"

    @property
    def _where(self) -> str:
        """Where the examples are, for messages: "of pets"."""
        raise NotImplementedError

    def _name(self, index: int) -> str:
        """What an example is called in a refusal."""
        return self.names[index]

    def _read_hashes(self) -> np.ndarray:
        """u8[N, 32], SHA-256 of the examples' bytes."""
        raise NotImplementedError

    def _inspect(self) -> dict[int, str]:
        """Decode every example, once; by index why one cannot be."""
        raise NotImplementedError

    def _refuse(self, faults: Mapping[int, str]) -> None:
        if faults:
            listed = [f"{shown(self._name(i))}: {shown(reason)}" for i, reason in sorted(faults.items())]
            more = f"\n  ... and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
            count = f"1 {self._what}" if len(listed) == 1 else f"{len(listed)} {self._what}s"
            raise self._error(
                f"{count} {self._where} cannot be decoded (on_error='skip' leaves such out):\n  "
                + "\n  ".join(listed[:_SHOWN])
                + more
            )
