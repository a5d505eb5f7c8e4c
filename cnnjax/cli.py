"""The commands."""

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from cnnjax.runtime.nearest import did_you_mean
from cnnjax.runtime.tuning import tune_cpu

# Command -> (module, options, function, what it does); modules are imported when their command is run.
COMMANDS = {
    "summary": (
        "cnnjax.summaries.command",
        "Summarise",
        "summarise",
        "the table of a network: shapes, parameters, what each layer costs and sees",
    ),
    "ablate": (
        "cnnjax.sweep.ablation",
        "Ablation",
        "ablate",
        "how deep should I freeze? A sweep with table and plot",
    ),
    "fit": ("cnnjax.classifier.fitting", "Fit", "fit", "train a classifier of your images, measure it, save it"),
    "evaluate": (
        "cnnjax.classifier.command",
        "Evaluate",
        "evaluate",
        "measure a saved classifier on labelled data",
    ),
    "predict": ("cnnjax.classifier.command", "Predict", "predict", "what is on images, by a saved classifier"),
    "size": ("cnnjax.commands.size", "Size", "size", "output sizes, parameters, multiplications, receptive fields"),
    "pack": ("cnnjax.commands.pack", "Pack", "pack", "a folder of images as one data set that is faster to read"),
    "show": ("cnnjax.show.command", "Show", "show", "drawings: filters, activations, edges, field, cam, augment"),
}


# Command ("" for all) -> what an option, or a value of one, is called now; where that is two words, an option's value.
RENAMED = {
    "": {
        "--on-bad": "--on-error", "--rate-groups": "--learning-rate-groups", "--find-rate": "--find-learning-rate",
        "--error": "--loss", "--picture": "IMAGE, without a name", "head-first": "lp-ft",
    },
    "summary": {"--name": "NAME, without --"},
    "evaluate": {"--backbone": "--code"},
    "predict": {"--backbone": "--code"},
}  # fmt: skip
# The option whose values these are.
_VALUES = {"head-first": "--methods"}


def renamed(command: str, words: Sequence[str]) -> str | None:
    """What to say of a word that is called something else now; None where there is none.

    >>> renamed("fit", ["--data", "pets", "--on-bad", "skip"])
    '`--on-bad` is now `--on-error`'
    >>> renamed("ablate", ["--methods", "direct", "head-first"])
    '`--methods head-first` is now `--methods lp-ft`'
    """
    now, option = RENAMED[""] | RENAMED.get(command, {}), ""
    for word in words:
        if word.startswith("--"):
            option = word.partition("=")[0].replace("_", "-")
        old = option if word.startswith("--") else word
        if old in now and (word.startswith("--") or option == _VALUES.get(old)):
            before = "" if word.startswith("--") else f"{option} "
            return f"`{before}{old}` is now `{before}{now[old]}`"
    return None


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:10} {text}" for name, (_, _, _, text) in COMMANDS.items()]
    return (
        "usage: cnnjax COMMAND [OPTIONS]\n\n"
        + "\n".join(lines)
        + "\n\ncnnjax COMMAND --help lists a command's options; --verbose says what is done for speed."
    )


def main(argv: list[str] | None = None) -> None:
    """Run a command; the entry point of `cnnjax`."""
    args = list(sys.argv[1:] if argv is None else argv)
    verbose = "--verbose" in args
    if verbose:
        args.remove("--verbose")
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return
    name, *rest = args
    if name == "--version":
        from cnnjax import __version__

        print(__version__)
        return
    if name not in COMMANDS:
        _fail(f"no command {name!r}{did_you_mean(name, COMMANDS, 0.4)}\n\n{usage()}")
    module_name, options, function, _ = COMMANDS[name]
    given = [word.partition("=")[0] for word in rest if word.startswith("--")]
    if old := renamed(name, rest):
        _fail(old)
    if twice := sorted({option for option in given if given.count(option) > 1}):
        _fail(f"{twice[0]} is given more than once; give its values together: {twice[0]} A B C")
    # Traced programs are large graphs of Python objects that are needed to the end: walked at Python's usual pace, they
    # take the collector a sixth of a short command's time.
    gc.set_threshold(50_000, 20, 100)
    tuned = tune_cpu()  # before JAX and NumPy begin threads
    if verbose:
        print(f"cnnjax: {_tuning(tuned)}", file=sys.stderr)
    import tyro

    from cnnjax.runtime import preemption

    module = importlib.import_module(module_name)
    try:
        kind = getattr(module, options)
        preset = kind.preset(given) if hasattr(kind, "preset") else None
        config = tyro.cli(kind, args=rest, prog=f"cnnjax {name}", **({} if preset is None else {"default": preset}))
        getattr(module, function)(config)
    except BrokenPipeError:  # whoever read the output (`head`, say) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except (ValueError, LookupError, OSError) as error:
        # What a user can mend is told in a sentence; anything else is our fault and keeps its trace.
        _fail(f"{type(error).__name__}: {error.args[0] if isinstance(error, KeyError) else error}")
    except KeyboardInterrupt:
        _fail("interrupted; the same command of fit, ablate or pack goes on where it stopped, others begin anew", 130)
    except preemption.Preempted as asked:
        where = "here" if asked.code == preemption.EXIT_CODE else "the last checkpoint: this state could not be saved"
        _fail(f"ended as asked; the same command goes on from {where}", int(asked.code or 0))


def _tuning(tuned: bool) -> str:
    from cnnjax.ops.onednn import takes

    memory = "freed memory stays with the process" if tuned else "memory is managed as the system has it"
    asked = "computes convolutions where a run is long enough" if takes("float32") else "is not used"
    return f"{memory}; oneDNN {asked}"


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"cnnjax: {message}", file=sys.stderr)
    raise SystemExit(code)
