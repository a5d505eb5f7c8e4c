"""Random small programs with and without oneDNN: how many of them come out otherwise.

    python scripts/fuzz_programs.py --first 2000 --plain 200 --trained 16
    python scripts/fuzz_programs.py a57 b9        # a program, or a network of eight, again

Each program is compiled twice, in a process that uses what `import cnnjax` brings and in one without oneDNN, and what
they give is compared: a difference of 1e-3 of the largest number (2e-2 in bfloat16), or NaN or Inf elsewhere, is wrong.
One in twenty, and each that is named, is also computed op by op (`jax.disable_jit`), which "wrong without" counts.

Programs named a are plain `jax.jit` programs: a value and its gradients. Those named b are parts, eight side by side,
of a network under a random freeze in `cnnjax.Trainer`: logits of `predict`, stored features, leaves after one SGD step.
`tests/fuzzing` draws them from the seed in the name. Of bfloat16, and of images with a NaN or Inf, values alone are
compared. LLVM's optimizations are left out, which take most of the time; oneDNN's calls and XLA's own passes stay.

2026-11-29, two cores of an Intel Xeon (AVX-512), 1,008 programs: a0 to a175 and a1000 to a1175 (`--first 0 --plain 176`
and so on), a2000 to a2199, a3000 to a3199, b0 to b15, b1000 to b1015; with jax 0.10, a0 to a59 and b0 to b1. Before,
`import cnnjax` had switched XLA's own rewriter on (commit c003f72, a0 to a175, a1000 to a1175 and 13 networks, run by
that checkout's Python):

| | programs | tried | with calls of oneDNN | wrong with it | checked op by op | wrong without it |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
| jax 0.12.0.1 | plain | 752 | 259 | 0 | 35 | 0 |
| | trained | 256 | 26 of 32 networks | 0 | 8 | 1 |
| jax 0.10.2 | plain | 60 | 0 | 0 | 3 | 0 |
| | trained | 16 | 0 of 2 networks | 0 | 0 | 0 |
| before, jax 0.12.0.1 | plain | 352 | 244 | 12 | 18 | 0 |
| | trained | 104 | 13 of 13 networks | 4 | 8 | 1 |

The one that is wrong without oneDNN is b9.3, by LLVM without its optimizations: it computes a depthwise convolution
twice, to other last bits, so that no number equals the maximum over channels, whose gradient is then 0 / 0. With
`--full` it is right.
"""

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

FUZZING = str(Path(__file__).resolve().parents[1] / "tests")
# How an older cnnjax, which switched XLA's own rewriter on, is told not to.
REWRITER_OFF = "--xla_cpu_experimental_onednn_custom_call=false"
SAMPLED = 20


def child(way: str, names: list[str], into: Path, sampled: int, quick: bool) -> None:
    """Run programs and write down what they give, one pickle after another; one in `sampled` op by op too."""
    import cnnjax  # noqa: F401  # first, as in a user's program  # isort: skip
    import jax

    sys.path.insert(0, FUZZING)
    from fuzzing.runs import run_plain, run_trained

    def run(name: str, **options: bool) -> list:
        seed = int(name[1:].partition(".")[0])
        return [run_plain(seed, **options)] if name[0] == "a" else run_trained(seed, **options)

    jax.config.update("jax_disable_most_optimizations", quick)
    with into.open("wb") as file:
        for k, name in enumerate(names):
            outcomes = run(name)
            pickle.dump((way, outcomes), file)
            if way == "without" and k % sampled == 0 and outcomes[0].dtype == "float32":
                pickle.dump(("by op", run(name, by_op=True)), file)
            file.flush()
            if k % 50 == 49:
                jax.clear_caches()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="programs to run again, such as a57 or b9")
    parser.add_argument("--plain", type=int, default=200, help="how many plain programs (default: %(default)s)")
    parser.add_argument("--trained", type=int, default=16, help="how many networks of eight (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="with LLVM's optimizations, which take most of the time")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    seeds = [
        *(f"a{given.first + k}" for k in range(given.plain)),
        *(f"b{given.first + k}" for k in range(given.trained)),
    ]
    names = given.names or seeds
    if given.child:
        return child(given.child[0], names, Path(given.child[1]), 1 if given.names else SAMPLED, not given.full)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        files = {way: Path(folder) / way for way in ("with", "without")}
        options = (f"--{name}={getattr(given, name)}" for name in ("plain", "trained", "first"))
        words = [sys.executable, __file__, *given.names, *options, *["--full"] * given.full]
        running = [
            subprocess.Popen([*words, "--child", way, str(file)], env=environment(way)) for way, file in files.items()
        ]
        codes = [process.wait() for process in running]
        ways: dict[str, dict] = {"with": {}, "without": {}, "by op": {}}
        for file in files.values():
            for way, outcomes in read(file):
                ways[way] |= {o.seed: o for o in outcomes}
    report(ways)
    print(f"jax {version('jax')}, jaxlib {version('jaxlib')}: {time.perf_counter() - start:.0f} s", *codes * any(codes))


def environment(way: str) -> dict[str, str]:
    """A process's environment: as it is, or with oneDNN left out."""
    own = dict(os.environ)
    if way == "without":
        own["CNNJAX_ONEDNN"] = "0"
        if tuple(map(int, version("jaxlib").split(".")[:2])) >= (0, 11):  # XLA ends a process for a flag it lacks
            own["XLA_FLAGS"] = f"{own.get('XLA_FLAGS', '')} {REWRITER_OFF}".strip()
    return own


def read(file: Path):
    """What a child has written."""
    sys.path.insert(0, FUZZING)
    with file.open("rb") as stream:
        while True:
            try:
                yield pickle.load(stream)
            except EOFError:
                return


def report(ways: dict[str, dict]) -> None:
    """Print the counts and each program that is wrong."""
    from fuzzing.outcome import wrong

    print("| programs | tried | with calls of oneDNN | wrong with it | checked op by op | wrong without it |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    bad: list[tuple[str, str, dict[str, float], str]] = []
    for kind, text in (("a", "plain"), ("b", "trained")):
        both = [s for s in ways["with"] if s in ways["without"] and s[0] == kind]
        checked = [s for s in ways["by op"] if s in ways["without"] and s[0] == kind]
        counts = []
        for one, other, seeds in (("with", "without", both), ("without", "by op", checked)):
            before = len(bad)
            for seed in seeds:
                found, expected = ways[one][seed], ways[other][seed]
                if off := wrong(found.arrays, expected.arrays, found.dtype):
                    bad.append((one, seed, off, found.text))
            counts.append(len(bad) - before)
        calls = [ways["with"][s].calls for s in both if kind == "a" or s.endswith(".0")]
        asks = f"{sum(c > 0 for c in calls)} of {len(calls)}"
        print(f"| {text} | {len(both)} | {asks} | {counts[0]} | {len(checked)} | {counts[1]} |")
    for way, seed, off, text in bad:
        worst = max(off, key=lambda name: off[name])
        print(f"wrong {way}: {seed}, {len(off)} arrays, {worst} by {off[worst]:.1e} of the largest: {text}")


if __name__ == "__main__":
    main()
