"""How a run is kept, what it is spread over, and what it starts from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flax.traverse_util import flatten_dict

from cnnjax.checkpoints import CheckpointMismatch, Checkpoints
from cnnjax.checkpoints.nested import strays
from cnnjax.classifier import folder
from cnnjax.functional import Leaves

if TYPE_CHECKING:
    from cnnjax.fit import CheckpointConfig
    from cnnjax.runtime.devices import Devices


@dataclass(frozen=True)
class RuntimeConfig:
    """How a run is kept and what it is spread over: nothing that changes what it computes."""

    checkpoint_every: float = 60.0
    """Seconds between two checkpoints; the same command goes on from the newest."""
    keep_checkpoints: int = 2
    """How many of the newest stay, besides the one with the lowest validation loss."""
    fall_back: bool = False
    """Go on from the checkpoint before, where the newest is damaged."""
    devices: int | None = None
    """How many devices the batches are spread over; all there are if not given."""
    shard_parameters: bool = False
    """Keep each large parameter, and the optimizer's state for it, in parts on the devices, not whole on each."""
    hosts: str | None = None
    """Join several hosts: auto (a TPU pod, SLURM or Open MPI say how), or ADDRESS:PORT,ID,COUNT of each process."""

    def __post_init__(self) -> None:
        if not self.checkpoint_every > 0:
            raise ValueError(f"checkpoint_every: expected seconds above 0, found {self.checkpoint_every}")
        if self.keep_checkpoints < 1:
            raise ValueError(f"keep_checkpoints: expected 1 or more, found {self.keep_checkpoints}")

    def start(self) -> "Devices | None":
        """Joins the hosts, and returns what the run is spread over; None for one device."""
        import jax

        from cnnjax.runtime.devices import Devices, start

        start(self.hosts)
        if jax.device_count() == 1 and self.devices in (None, 1):
            return None
        return Devices.all(count=self.devices, shard_parameters=self.shard_parameters)

    def checkpointing(
        self, checkpoints: "Checkpoints", metadata: Mapping[str, Any], tell: Callable[[str], None]
    ) -> "CheckpointConfig":
        """What `Fitter.fit` is given."""
        from cnnjax.fit import CheckpointConfig

        return CheckpointConfig(
            checkpoints, every=self.checkpoint_every, metadata=metadata, fall_back=self.fall_back, tell=tell
        )


def initial_leaves(path: Path, own: Leaves, part: Literal["all", "backbone"]) -> Leaves:
    """The leaves of a model that starts from another run.

    Args:
        path: a finished run folder of `cnnjax fit`, a saved classifier, or one checkpoint, `RUN/checkpoints/STEP`, of a
            run whose newest would be another one tomorrow: its weights as they were, no averages.
        own: the model's leaves.
        part: what is taken from there; the rest stays the model's own.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder, or nothing to start from in it.
        CheckpointMismatch: naming every leaf that is missing there, unknown here, or of another shape or type.
    """
    wanted = {p: x for p, x in own.items() if part == "all" or p.startswith("backbone/")}
    found, where = _read(path)
    given = {p: x for p, x in found.items() if part == "all" or p.startswith("backbone/")}
    faults = strays(given, wanted)
    faults += [
        f"  {p}: expected {x.dtype}{list(x.shape)}, found {given[p].dtype}{list(given[p].shape)}"
        for p, x in wanted.items()
        if p in given and (given[p].shape, given[p].dtype) != (x.shape, x.dtype)
    ]
    if faults:
        outside = part == "all" and not any(fault.startswith("  backbone/") for fault in faults)
        hint = "; --init-part backbone leaves the head out" if outside else ""
        if not outside and not given.keys() - wanted.keys() and where.parent.name == "checkpoints":
            hint = "; a checkpoint lacks what its run froze: finish that run and take its classifier"
        raise CheckpointMismatch(f"{where} does not fit{hint}:\n" + "\n".join(faults))
    return {**own, **given}


def _read(path: Path) -> tuple[Mapping[str, Any], Path]:
    """The leaves that a folder holds, and where exactly."""
    for place in (path / "classifier", path):
        if (place / folder.WEIGHTS).is_file():
            return folder.read_leaves(place), place
    if path.parent.name == "checkpoints" and path.name.isdecimal():
        state = Checkpoints(path.parent).read(int(path.name))["state"]
        # A network without normalisation has no statistics.
        leaves = flatten_dict(state["trainable"], sep="/") | flatten_dict(state.get("statistics", {}), sep="/")
        return leaves, path
    if (path / "checkpoints").is_dir() and (step := Checkpoints(path / "checkpoints").latest()) is not None:
        raise FileNotFoundError(
            f"{path} is not finished: its newest weights change under way. Finish it, or give one of its checkpoints, "
            f"such as {path / 'checkpoints' / str(step)}"
        )
    raise FileNotFoundError(f"{path} holds neither a saved classifier nor a checkpoint to start from")
