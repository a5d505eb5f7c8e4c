"""Compile train steps for TPU slices that nobody has rented yet: do they fit, what do they cost?

    python scripts/aot_tpu.py
    python scripts/aot_tpu.py --model vgg16 --freeze block4_pool --batch 512 2048 --topology v5e:2x2 tpu7x:2x2x1

It compiles the functions that `cnnjax.Trainer` runs, with TPU's own compiler (libtpu, as `pip install '.[tpu]'` brings
it), on a CPU and without the network. The batch is cut over all devices of the slice; each of them holds all parameters
(with `--shard-parameters` a part of the large ones). Columns:

- batch: of all devices together.
- of GiB a device: what the compiler wants, of what a device has; in it the arguments (state, batch, stored rows) and
  temporary values. A device is a chip; of tpu7x it is half a chip.
- TFLOP a step, GFLOP a device: additions and multiplications, those with padding left out.
- ms at peak: the least time, each operation at the peak of the chip's arithmetic or memory (XLA's `optimal_seconds`),
  without messages. No prediction: count on more.
- Mcycles: what the compiler expects its fused operations to take, without copies and messages; at 1.5 GHz (v5e, to
  judge by its peak) 126 are 84 ms.
- messages: between devices, with the bytes of the arrays that they add up or put together.

The default jobs, and two lines more, in fewer columns (2026-11-23, jax 0.12.0.1, libtpu 0.0.50.1; a linear head for
1,000 classes, Adam, float32 unless said; features of 50,000 images on each device; 27 CPU minutes on two busy cores
of an AMD EPYC):

| step | topology | batch | fits | of GiB | temporaries | TFLOP | ms at peak | Mcycles | all-reduce |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| MobileNet, from scratch | v5e:2x2 | 1,024 | yes | 6.54 of 15.75 | 6.33 | 3.67 | 71.6 | 126 | 56, 17.06 MB |
| MobileNet, from scratch | v5e:2x2 | 4,096 | yes | 14.28 of 15.75 | 13.63 | 15.2 | 263 | 568 | 56, 17.06 MB |
| MobileNet, from scratch | v5e:2x2 | 16,384 | no | 39.13 of 15.75 | - | - | - | - | - |
| MobileNet, from scratch | v5e:16x16 | 1,024 | yes | 0.33 of 15.75 | 0.23 | 4.30 | 7.44 | 8.34 | 56, 17.06 MB |
| MobileNet, from scratch | v5e:16x16 | 4,096 | yes | 0.75 of 15.75 | 0.66 | 14.7 | 9.93 | 8.30 | 56, 17.02 MB |
| MobileNet, bfloat16 | v5e:16x16 | 4,096 | yes | 0.34 of 15.75 | 0.25 | 15.2 | 6.08 | 6.68 | 56, 8.60 MB |
| MobileNet, from scratch | v6e:4x4 | 1,024 | yes | 2.50 of 31.24 | 2.37 | 3.67 | 12.1 | 22.4 | 56, 17.06 MB |
| MobileNet, from scratch | v6e:4x4 | 4,096 | yes | 6.55 of 31.24 | 6.33 | 14.7 | 29.1 | 79.4 | 56, 17.06 MB |
| VGG16, block5 tuned | v5e:2x2 | 512 | yes | 3.28 of 15.75 | 3.07 | 17.4 | 33.5 | 60.1 | 2, 30.37 MB |
| VGG16, block5 tuned | v5e:2x2 | 2,048 | yes | 12.96 of 15.75 | 12.54 | 69.5 | 129 | 247 | 2, 30.37 MB |
| VGG16, block5 tuned | v5e:16x16 | 512 | yes | 0.14 of 15.75 | 0.02 | 19.1 | 2.34 | 2.10 | 2, 30.37 MB |
| VGG16, block5 tuned | v5e:16x16 | 2,048 | yes | 0.53 of 15.75 | 0.39 | 69.6 | 4.04 | 5.51 | 2, 30.37 MB |
| VGG16, block5 tuned | v6e:4x4 | 512 | yes | 1.02 of 31.24 | 0.86 | 17.4 | 3.03 | 8.16 | 2, 30.37 MB |
| VGG16, block5 tuned | v6e:4x4 | 2,048 | yes | 1.93 of 31.24 | 1.73 | 69.5 | 8.48 | 24.6 | 2, 30.37 MB |
| MobileNet, stored features | v5e:2x2 | 1,024 | yes | 0.21 of 15.75 | 0.00 | 0.00455 | 0.203 | 0.113 | 2, 4.10 MB |
| MobileNet, stored features | v5e:2x2 | 8,192 | yes | 0.21 of 15.75 | 0.00 | 0.0360 | 0.323 | 0.362 | 2, 4.10 MB |
| MobileNet, stored features | v5e:16x16 | 1,024 | yes | 0.20 of 15.75 | 0.00 | 0.00816 | 0.182 | 0.0906 | 2, 4.10 MB |
| MobileNet, stored features | v5e:16x16 | 8,192 | yes | 0.20 of 15.75 | 0.00 | 0.0396 | 0.183 | 0.0913 | 2, 4.10 MB |
| MobileNet, stored features | v6e:4x4 | 1,024 | yes | 0.20 of 31.24 | 0.00 | 0.00472 | 0.0918 | 0.0593 | 2, 4.10 MB |
| MobileNet, stored features | v6e:4x4 | 8,192 | yes | 0.20 of 31.24 | 0.00 | 0.0351 | 0.112 | 0.0859 | 2, 4.10 MB |

Checked by hand: the all-reduces carry the gradient (VGG16: 4 bytes for each of 7,592,424 trainable parameters), three
sums of the metrics, and in MobileNet sums for each of BatchNorm's 10,944 channels. Its two rows for 4,096 images on
v5e:16x16 were compiled after BatchNorm had got a gradient of its own, which spares one such sum and up to 3 % of the
time; the other rows of MobileNet before. By the arithmetic
of `cnnjax.sizing` a MobileNet step takes 3.39 GFLOP an image; the compiler counts 3.58, which includes BatchNorm and
Adam, but 3.71 where memory is nearly full and 4.20 with 4 images on a device. VGG16: 35.3, and 34.0 without padding,
but 37.3 with 2 images on a device.
"""

import argparse
import importlib.util
import json
import math
import os
import re
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

# Read by JAX and libtpu as they start: JAX stays on the CPU, and libtpu asks nobody in the network which TPU it is on.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # another process may compile meanwhile: no TPU is touched
}
TOPOLOGIES = ("v5e:2x2", "v5e:16x16", "v6e:4x4")
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


@dataclass(frozen=True)
class Job:
    """A train step to compile.

    Attributes:
        model: A key of `cnnjax.models.BACKBONES`; a linear head for 1,000 classes goes on it.
        image_size: Height and width in pixels, one number for both.
        freeze: As `Freeze.parse` reads it.
        rows: What a step gets: "images", streamed, or the "features" of `examples` images that lie on each device.
        batches: Sizes of the global batch.
        examples: See `rows`.
    """

    model: str
    image_size: int | tuple[int, int]
    freeze: str
    rows: str
    batches: tuple[int, ...]
    examples: int = 50_000


JOBS = (
    Job("mobilenet", 224, "none", "images", (1024, 4096)),
    Job("vgg16", 224, "block4_pool", "images", (512, 2048)),
    Job("mobilenet", 224, "all", "features", (1024, 8192)),
)


@dataclass(frozen=True)
class Found:
    """What the compiler says of a step. Bytes, operations and cycles are those of one device.

    Attributes:
        job: Model, image size, frozen layers, rows.
        topology: As libtpu names it.
        devices: In the mesh; one is a chip, but half a chip of tpu7x.
        batch: Of all devices together.
        precision: What is computed with.
        fits: Whether it compiles.
        available: Memory of a device, as its compiler knows it.
        needed: All memory that it takes, or that it would take.
        arguments: Memory of state, batch and stored rows.
        temporary: Memory of what lives within the step.
        flops: Operations, a multiplication and an addition apart; those on padding are not counted.
        seconds: The least time: each operation at the peak of the chip's arithmetic or memory, one after another,
            messages between devices left out (`optimal_seconds` of XLA's cost analysis).
        cycles: What the compiler expects its fused operations to take.
        messages: Between devices, by kind: how many, and the bytes of their arrays.
        compiling: Seconds that compiling took.
    """

    job: str
    topology: str
    devices: int
    batch: int
    precision: str
    fits: bool
    available: int
    needed: int
    arguments: int | None = None
    temporary: int | None = None
    flops: float | None = None
    seconds: float | None = None
    cycles: int | None = None
    messages: dict[str, tuple[int, int]] = field(default_factory=dict)
    compiling: float = 0.0


def devices_of(topology: str) -> list[Any]:
    """The devices of a slice.

    Raises:
        ValueError: libtpu knows no such slice.
        OSError: It does not start.
    """
    import jax
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(topology, platform="tpu").devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        if not reason.startswith("INVALID_ARGUMENT"):
            raise OSError(f"libtpu does not start: {reason}") from None
        raise ValueError(
            f"libtpu knows no topology {topology!r} ({reason}); "
            "try v5e:2x2, v5e:16x16, v5p:2x2x1, v6e:4x4 or tpu7x:2x2x1"
        ) from None


def memory_of(device: Any) -> int:
    """Bytes of a device's memory: what its compiler holds against a program that needs far more."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    large = jax.ShapeDtypeStruct((1 << 40,), jnp.float32, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(lambda x: x + 1).trace(large).lower(lowering_platforms=("tpu",)).compile()
    except jax.errors.JaxRuntimeError as error:
        return shortage(str(error))[1]
    raise AssertionError("a device of 8 TiB")


def shortage(message: str) -> tuple[int, int]:
    """(bytes needed, bytes there are) of a compiler's complaint.

    Raises:
        ValueError: It complains of something else.

    >>> shortage("memory required for HLO temporaries (8.00T) exceeds available HBM (15.75G). HLO") == (
    ...     8 << 40, 63 << 28)
    True
    """
    size = r"([\d.]+)([KMGT]?)"
    patterns = (rf"\({size}\) exceeds available HBM \({size}\)", rf"Used {size} of {size} hbm")
    for pattern in patterns:
        if found := re.search(pattern, message):
            need, need_unit, have, have_unit = found.groups()
            return int(float(need) * 2 ** _UNITS[need_unit]), int(float(have) * 2 ** _UNITS[have_unit])
    raise ValueError(f"the compiler refuses: {message.splitlines()[0]}")


def trainer_of(job: Job, batch: int, precision: Any) -> Any:
    """The trainer of a job, with random weights."""
    from flax import nnx

    from cnnjax import Classifier, Freeze, Trainer, linear_head
    from cnnjax.models.sizes import sides
    from cnnjax.weights.pretrained import open_backbone

    backbone, preprocessing = open_backbone(job.model, image_size=job.image_size, include_top=False)
    model = Classifier(backbone, linear_head(backbone.output_shape(), 1000, rngs=nnx.Rngs(1)), preprocessing)
    frozen, size = Freeze.parse(job.freeze).resolve(model, "backbone"), sides(job.image_size)
    return Trainer(model, frozen, size, batch_size=batch, optimizer="adam", precision=precision)


def measure(job: Job, topology: str, batch: int, precision: str, shard_parameters: bool) -> Found:
    """Compile a job's step for a slice.

    Raises:
        ValueError: The devices cannot share the batch, or the compiler refuses for another reason than memory.
    """
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from cnnjax.runtime.devices import AXIS, Devices
    from cnnjax.train.lowering import collectives, program

    slice_ = devices_of(topology)
    devices = Devices(Mesh(np.array(slice_), (AXIS,)), shard_parameters)
    devices.check_batch(batch)
    trainer = trainer_of(job, batch, precision)
    kind = ("taking_step", "features") if job.rows == "features" else ("step", "source")
    step = program(trainer, *kind, examples=job.examples).on(devices)
    size = job.image_size if isinstance(job.image_size, int) else "x".join(map(str, job.image_size))
    label = f"{job.model} {size}, {job.freeze} frozen, {job.rows}"
    found = Found(label, topology, len(slice_), batch, precision, False, memory_of(slice_[0]), 0)
    lowered, start = step.lower("tpu"), time.perf_counter()
    try:
        compiled: Any = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed, available = shortage(str(error))
        return replace(found, needed=needed, available=available, compiling=time.perf_counter() - start)
    seconds = time.perf_counter() - start
    memory, costs, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    own = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.generated_code_size_in_bytes
    # XLA puts down -1 second for each custom call of the schedule; those of our steps are changes of layout, for free.
    entry = text[text.index("\nENTRY ") :]
    unknown = len(re.findall(r" custom-call\(", entry[: entry.index("\n}")]))
    return replace(
        found,
        fits=True,
        needed=memory.argument_size_in_bytes + memory.temp_size_in_bytes + own,
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        flops=costs["flops"],
        seconds=costs["optimal_seconds"] + unknown,
        cycles=sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', entry))),
        messages={kind: tuple(traffic) for kind, traffic in collectives(text).items()},
        compiling=seconds,
    )


def table(found: list[Found], how: str) -> str:
    """All results as a table for a terminal, in Markdown, or as JSON with everything in it."""
    from cnnjax.metrics.tables import markdown, terminal

    if how == "json":
        return json.dumps([asdict(one) for one in found], indent=1)
    header = (
        "step", "topology", "precision", "batch", "fits", "of GiB a device", "arguments", "temporaries",
        "TFLOP a step", "GFLOP a device", "ms at peak", "Mcycles", "messages",
    )  # fmt: skip
    rows = [header, *map(_line, found)]
    return (markdown if how == "markdown" else terminal)("train steps, compiled ahead of time", rows, 3)


def _line(one: Found) -> tuple[str, ...]:
    def gib(size: int | None) -> str:
        return "-" if size is None else f"{size / 2**30:.2f}"

    place = (one.job, one.topology, one.precision, f"{one.batch:,}")
    need = f"{gib(one.needed)} of {gib(one.available)}"
    if one.flops is None or one.seconds is None or one.cycles is None:
        return (*place, "no", need, *"--" * 3, "-")
    costs = (one.flops * one.devices / 1e12, one.flops / 1e9, 1e3 * one.seconds, one.cycles / 1e6)
    messages = [f"{count} {kind} {size / 1e6:,.2f} MB" for kind, (count, size) in sorted(one.messages.items())]
    memory = (need, gib(one.arguments), gib(one.temporary))
    return (*place, "yes", *memory, *map(_figures, costs), ", ".join(messages) or "none")


def _figures(number: float) -> str:
    """With three figures.

    >>> _figures(1234.5), _figures(0.00456)
    ('1,234', '0.00456')
    """
    return f"{number:,.{max(0, 2 - math.floor(math.log10(number)))}f}" if number > 0 else "0"


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """The jobs that the options name, the default ones without `--model`."""
    changed: dict[str, Any] = {"batches": tuple(options.batch)} if options.batch else {}
    if options.model is None:
        if given := [name for name in ("image_size", "freeze", "rows") if getattr(options, name) is not None]:
            raise ValueError(f"--{given[0].replace('_', '-')} needs a --model")
        return [replace(job, **changed) for job in JOBS]
    rows = options.rows or ("features" if options.freeze == "all" else "images")
    size: Any = options.image_size or [224]
    job = Job(
        options.model,
        size[0] if len(size) == 1 else tuple(size),
        options.freeze or "none",
        rows,
        (1024,),
        options.examples,
    )
    return [replace(job, **changed)]


def main(arguments: list[str] | None = None) -> int:
    """Read the options, compile, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the name of a backbone (default: three jobs, see above)")
    parser.add_argument("--image-size", type=int, nargs="+", help="pixels, or height and width (default: 224)")
    parser.add_argument("--freeze", help="none, all, a depth, a layer, as everywhere (default: none)")
    parser.add_argument("--rows", choices=("images", "features"), help="what a step gets (default: features for all)")
    parser.add_argument("--examples", type=int, default=50_000, help="whose features lie on each device")
    parser.add_argument("--batch", type=int, nargs="+", help="sizes of the global batch")
    parser.add_argument("--topology", nargs="+", default=TOPOLOGIES, help="such as v5e:2x2, v6e:4x4, tpu7x:2x2x1")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--shard-parameters", action="store_true", help="cut parameters over the devices as well")
    parser.add_argument("--format", choices=("table", "markdown", "json"), default="table")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("libtpu") is None:
        print("aot_tpu needs TPU's compiler: pip install '.[tpu]' installs the libtpu of this JAX", file=sys.stderr)
        return 2
    os.environ.update(ENVIRONMENT)
    found = []
    try:
        for job in jobs_of(options):
            for topology in options.topology:
                for batch in job.batches:
                    one = measure(job, topology, batch, options.precision, options.shard_parameters)
                    print(f"{one.job} on {topology}, batch {batch}: {one.compiling:.0f} s", file=sys.stderr)
                    found.append(one)
    except KeyboardInterrupt:
        print("interrupted: this is what was compiled until then", file=sys.stderr)
    except (ValueError, LookupError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(table(found, options.format))
    return 0


if __name__ == "__main__":
    sys.exit(main())
