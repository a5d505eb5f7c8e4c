"""Cold start: the import, the first step, and both in a second process that finds its compiled programs."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

_IMPORTS = {
    "import jax": "import jax",
    "import jax, cnnjax": "import jax, cnnjax",
    "import jax, flax.nnx": "import jax; from flax import nnx",
    "all of cnnjax's names": "import jax, cnnjax; [getattr(cnnjax, name) for name in cnnjax.__all__]",
}
_FIRST_STEP = """
import time
start = time.perf_counter()
import cnnjax
cnnjax.tune_cpu()
import jax
import numpy as np
from flax import nnx
from cnnjax.data import InMemory
cnnjax.keep_programs()
events = []
jax.monitoring.register_event_listener(lambda event, **kwargs: events.append(event))
jax.monitoring.register_event_duration_secs_listener(lambda event, seconds, **kwargs: events.append(event))
imported = time.perf_counter() - start
backbone = cnnjax.mobilenet(0.25, (96, 96, 3), include_top=False, rngs=nnx.Rngs(0))
model = cnnjax.Classifier(backbone, cnnjax.linear_head(backbone.output_shape(), 2, rngs=nnx.Rngs(1)), "tf")
images = InMemory(np.random.default_rng(0).integers(0, 256, (32, 96, 96, 3), np.uint8), np.arange(32) % 2, ("a", "b"))
trainer = cnnjax.Trainer(model, cnnjax.Freeze.none().resolve(model, "backbone"), (96, 96))
built = time.perf_counter() - start
trainer.fit(trainer.init(), trainer.rows(images), epochs=1)
import json, resource
# A program that cannot be written is no miss to JAX.
hits = events.count("/jax/compilation_cache/cache_hits")
compiled = events.count("/jax/core/compile/backend_compile_duration") - hits
print(json.dumps({"import": imported, "model and trainer": built - imported, "first step": time.perf_counter() - start
    - built, "programs compiled": compiled, "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def _seconds(code: str) -> float:
    timed = f"import time; start = time.perf_counter()\n{code}\nprint(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True).stdout)


def run(options: argparse.Namespace) -> None:
    """The command `start`."""
    found: dict[str, list[float]] = {name: [] for name in _IMPORTS}
    for code in _IMPORTS.values():
        _seconds(code)  # from the disk
    for _ in range(options.repeats):
        for name, code in _IMPORTS.items():
            found[name].append(_seconds(code))
    base = statistics.median(found["import jax"])
    print("| statement | seconds, median (range) | more than importing jax |\n| --- | ---: | ---: |")
    for name, seconds in found.items():
        middle = statistics.median(seconds)
        print(f"| {name} | {middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) | {middle - base:+.2f} |")
    print("\nMobileNet 0.25 at 96x96 from scratch, an epoch of one batch, in seconds:\n")
    starts: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        for own, note in (({}, ""), ({"CNNJAX_ONEDNN": "0"}, ", CNNJAX_ONEDNN=0")):
            with tempfile.TemporaryDirectory() as cache:
                for name in ("first process", "second process"):
                    words, where = [sys.executable, "-c", _FIRST_STEP], os.environ | {"CNNJAX_CACHE": cache} | own
                    out = subprocess.run(words, capture_output=True, text=True, check=True, env=where).stdout
                    starts.setdefault(name + note, []).append(json.loads(out.splitlines()[-1]))
    parts = list(starts["first process"][0])
    print(f"| | {' | '.join(parts)} |\n| --- |{' ---: |' * len(parts)}")
    for name, processes in starts.items():
        print(f"| {name} | {' | '.join(f'{statistics.median(p[part] for p in processes):.2f}' for part in parts)} |")
