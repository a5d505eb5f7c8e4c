"""A few of the random programs of `scripts/fuzz_programs.py`: with oneDNN they come out as without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from fuzzing.outcome import wrong
from fuzzing.runs import run_plain, run_trained

from cnnjax import ops
from cnnjax.ops import onednn

pytestmark = pytest.mark.usefixtures("compiled_fast")
PLAIN, TRAINED = range(20), range(100, 101)
# A vector along rows, or images as many as channels, is added to a convolution.
WRONG = [57, 141]


def _with_and_without(run, *seeds):
    """(seed, text, calls of oneDNN, what is wrong) of each program."""
    found = []
    for seed in seeds:
        pairs = []
        for wanted in (True, False):
            with ops.use_onednn(wanted):
                pairs.append(run(seed))
        found += [(a.seed, a.text, a.calls, wrong(a.arrays, b.arrays, a.dtype)) for a, b in zip(*pairs, strict=True)]
    return found


def test_plain_programs_are_the_same_without_onednn():
    found = _with_and_without(lambda seed: [run_plain(seed)], *PLAIN)
    assert [one for one in found if one[3]] == []
    share = sum(calls > 0 for _, _, calls, _ in found) / len(found)
    assert share >= 0.25 if onednn.takes(jnp.float32) else share == 0


@pytest.mark.parametrize("seed", TRAINED)
def test_networks_are_the_same_without_onednn(seed):
    found = _with_and_without(run_trained, seed)
    assert [one for one in found if one[3]] == []
    assert (found[0][2] > 0) is onednn.takes(jnp.float32)


_CHILD = """
import json
import cnnjax
import jax
from fuzzing.outcome import wrong
from fuzzing.runs import run_plain
jax.config.update("jax_disable_most_optimizations", True)
print(json.dumps([sorted(wrong(run_plain(s).arrays, run_plain(s, by_op=True).arrays, "float32")) for s in SEEDS]))
"""


@pytest.mark.skipif(not onednn.takes(jnp.float32), reason="this jaxlib has no such rewriter")
def test_they_show_what_xlas_own_rewriter_gets_wrong():
    """So that a fuzz that sees nothing is known to look."""
    own = os.environ | {
        "XLA_FLAGS": "--xla_cpu_experimental_onednn_custom_call=true "
        "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }
    program = _CHILD.replace("SEEDS", str(WRONG))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=own)
    assert all(json.loads(done.stdout)), "\n".join(run_plain(s).text for s in WRONG)
