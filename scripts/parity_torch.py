"""Networks in torchvision's and timm's form against torchvision and timm, with random weights.

Two steps, in two environments. Where torch, torchvision and timm are installed:

    python scripts/parity_torch.py write DIR [PATTERN ...]

makes each network, gives it random weights and statistics, and writes them with an input and the output. Here:

    uv run python scripts/parity_torch.py check DIR

builds the same network, puts the weights onto it (every leaf is filled, every tensor used) and prints a table of the
largest differences, relative to the largest output. It ends with status 1 where one exceeds 1e-4.

2026-11-29, torch 2.13, torchvision 0.28, timm, two CPU cores, images of 64 pixels (AlexNet 224 and 227, SqueezeNet
224). The largest difference of every network is below 1e-6, but of BiT:

| family | networks | largest relative difference |
| --- | --- | --- |
| ResNet 1.5 | torchvision's and timm's 18, 34, 50, 101, 152 | 7.9e-07 |
| ResNeXt | both 50 32x4d, torchvision's 101 32x8d | 4.9e-07 |
| Wide ResNet | torchvision's 50-2 | 7.6e-07 |
| DenseNet | torchvision's 121, 201 | 2.8e-07 |
| RegNet X | torchvision's 400 and 800 MF, timm's 200 MF to 1.6 GF | 5.2e-07 |
| RegNet Y | torchvision's 400 and 800 MF and 8 GF, timm's 200 MF to 1.6 GF | 3.9e-07 |
| SqueezeNet 1.1 | torchvision's | 1.6e-07 |
| AlexNet | torchvision's, and two towers of torch's layers | 2.0e-07 |
| BiT | timm's R50x1 | 3.0e-06 |
"""

import fnmatch
import re
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

LIMIT = 1e-4

# Torch's names of modules to our layers. `\1` is a number as it stands, `{1+1}` one that is a greater.
RESNET = (
    (r"conv1", "conv1_conv"), (r"bn1", "conv1_bn"), (r"fc", "predictions"),
    (r"layer(\d+)\.(\d+)\.conv(\d)", "conv{1+1}_block{2+1}_{3}_conv"),
    (r"layer(\d+)\.(\d+)\.bn(\d)", "conv{1+1}_block{2+1}_{3}_bn"),
    (r"layer(\d+)\.(\d+)\.downsample\.0", "conv{1+1}_block{2+1}_0_conv"),
    (r"layer(\d+)\.(\d+)\.downsample\.1", "conv{1+1}_block{2+1}_0_bn"),
)  # fmt: skip
CIFAR = (("linear", "predictions"), *RESNET)
DENSENET = (
    (r"features\.conv0", "conv1_conv"), (r"features\.norm0", "conv1_bn"), (r"classifier", "predictions"),
    (r"features\.denseblock(\d)\.denselayer(\d+)\.norm1", "conv{1+1}_block{2}_0_bn"),
    (r"features\.denseblock(\d)\.denselayer(\d+)\.norm2", "conv{1+1}_block{2}_1_bn"),
    (r"features\.denseblock(\d)\.denselayer(\d+)\.conv(\d)", "conv{1+1}_block{2}_{3}_conv"),
    (r"features\.transition(\d)\.norm", "pool{1+1}_bn"), (r"features\.transition(\d)\.conv", "pool{1+1}_conv"),
    (r"features\.norm5", "bn"),
)  # fmt: skip
_BLOCK = r"trunk_output\.block(\d)\.block\d-(\d+)"
_OF_BLOCK = "stage{1}_block{2+1}"
REGNET = (
    (r"stem\.0", "stem_conv"), (r"stem\.1", "stem_bn"), (r"fc", "predictions"),
    (rf"{_BLOCK}\.proj\.0", f"{_OF_BLOCK}_0_conv"), (rf"{_BLOCK}\.proj\.1", f"{_OF_BLOCK}_0_bn"),
    *((rf"{_BLOCK}\.f\.{letter}\.0", f"{_OF_BLOCK}_{k}_conv") for k, letter in enumerate("abc", 1)),
    *((rf"{_BLOCK}\.f\.{letter}\.1", f"{_OF_BLOCK}_{k}_bn") for k, letter in enumerate("abc", 1)),
    (rf"{_BLOCK}\.f\.se\.fc1", f"{_OF_BLOCK}_se_reduce"), (rf"{_BLOCK}\.f\.se\.fc2", f"{_OF_BLOCK}_se_expand"),
)  # fmt: skip
TIMM_REGNET = (
    (r"stem\.conv", "stem_conv"), (r"stem\.bn", "stem_bn"), (r"head\.fc", "predictions"),
    (r"s(\d)\.b(\d+)\.conv(\d)\.(conv|bn)", "stage{1}_block{2}_{3}_{4}"),
    (r"s(\d)\.b(\d+)\.downsample\.(conv|bn)", "stage{1}_block{2}_0_{3}"),
    (r"s(\d)\.b(\d+)\.se\.fc1", "stage{1}_block{2}_se_reduce"),
    (r"s(\d)\.b(\d+)\.se\.fc2", "stage{1}_block{2}_se_expand"),
)  # fmt: skip
SQUEEZENET = (
    (r"features\.0", "conv1"), (r"classifier\.1", "conv10"),
    *((rf"features\.{n}\.squeeze", f"fire{k}_squeeze1x1") for k, n in enumerate((3, 4, 6, 7, 9, 10, 11, 12), 2)),
    *((rf"features\.{n}\.(expand\dx\d)", f"fire{k}_{{1}}") for k, n in enumerate((3, 4, 6, 7, 9, 10, 11, 12), 2)),
)  # fmt: skip
ALEXNET = (
    *((rf"features\.{n}", f"conv{k}") for k, n in enumerate((0, 3, 6, 8, 10), 1)),
    (r"classifier\.1", "fc6"), (r"classifier\.4", "fc7"), (r"classifier\.6", "predictions"),
)  # fmt: skip
BIT = (
    (r"stem\.conv", "conv1_conv"), (r"norm", "post_gn"), (r"head\.fc", "predictions"),
    (r"stages\.(\d)\.blocks\.(\d+)\.norm1", "conv{1+2}_block{2+1}_preact_gn"),
    (r"stages\.(\d)\.blocks\.(\d+)\.norm2", "conv{1+2}_block{2+1}_1_gn"),
    (r"stages\.(\d)\.blocks\.(\d+)\.norm3", "conv{1+2}_block{2+1}_2_gn"),
    (r"stages\.(\d)\.blocks\.(\d+)\.conv(\d)", "conv{1+2}_block{2+1}_{3}_conv"),
    (r"stages\.(\d)\.blocks\.(\d+)\.downsample\.conv", "conv{1+2}_block{2+1}_0_conv"),
)  # fmt: skip

# (torch's maker: "torchvision:NAME", "timm:NAME" or a function below; our architecture, options, size, names)
ROWS = [
    *((f"{library}:resnet{d}", "resnet", {"depth": d, "variant": "v1.5"}, 64, RESNET)
      for library in ("torchvision", "timm") for d in (18, 34, 50, 101, 152)),
    ("torchvision:resnext50_32x4d", "resnet",
     {"depth": 50, "variant": "v1.5", "groups": 32, "base_width": 4}, 64, RESNET),
    ("timm:resnext50_32x4d", "resnet", {"depth": 50, "variant": "v1.5", "groups": 32, "base_width": 4}, 64, RESNET),
    ("torchvision:resnext101_32x8d", "resnet",
     {"depth": 101, "variant": "v1.5", "groups": 32, "base_width": 8}, 64, RESNET),
    ("torchvision:wide_resnet50_2", "resnet", {"depth": 50, "variant": "v1.5", "base_width": 128}, 64, RESNET),
    *((f"torchvision:densenet{d}", "densenet", {"depth": d, "growth": 48 if d == 161 else 32}, 64, DENSENET)
      for d in (121, 161, 169, 201)),
    *((f"torchvision:regnet_{v.replace('.', '_')}", "regnet",
       {"variant": f"{v}_tv" if v in ("x_400mf", "y_800mf", "y_8gf") else v}, 64, REGNET)
      for v in ("x_400mf", "x_800mf", "x_1.6gf", "x_3.2gf", "x_8gf", "x_16gf", "x_32gf",
                "y_400mf", "y_800mf", "y_1.6gf", "y_3.2gf", "y_8gf", "y_16gf", "y_32gf")),
    *((f"timm:regnet{v[0]}_{n}", "regnet", {"variant": v}, 64, TIMM_REGNET)
      for v, n in (("x_200mf", "002"), ("x_400mf", "004"), ("x_400mf_tv", "004_tv"), ("x_600mf", "006"),
                   ("x_800mf", "008"), ("x_1.6gf", "016"), ("x_3.2gf", "032"), ("x_4gf", "040"), ("x_6.4gf", "064"),
                   ("x_8gf", "080"), ("x_12gf", "120"), ("y_200mf", "002"), ("y_400mf", "004"), ("y_600mf", "006"),
                   ("y_800mf", "008"), ("y_800mf_tv", "008_tv"), ("y_1.6gf", "016"), ("y_3.2gf", "032"),
                   ("y_4gf", "040"), ("y_6.4gf", "064"), ("y_8gf", "080"), ("y_8gf_tv", "080_tv"), ("y_12gf", "120"))),
    ("torchvision:squeezenet1_1", "squeezenet", {"classifier_activation": None}, 224, SQUEEZENET),
    ("torchvision:alexnet", "alexnet", {"variant": "one_tower"}, 224, ALEXNET),
    ("two_towers", "alexnet", {"variant": "two_towers"}, 227, ALEXNET),
    *((f"timm:resnetv2_{d}x{f}_bit", "bit", {"depth": d, "factor": f}, 64, BIT) for d, f in ((50, 1), (101, 1))),
]  # fmt: skip
SEEN = "input and output"


def two_towers():
    """Krizhevsky's network, of torch's own layers, whose normalisation divides the factor by its size."""
    from torch import nn

    norm = dict(size=5, alpha=5e-4, beta=0.75, k=2.0)
    layers = [
        ("0", nn.Conv2d(3, 96, 11, 4)), ("r0", nn.ReLU()), ("n0", nn.LocalResponseNorm(**norm)),
        ("p0", nn.MaxPool2d(3, 2)),
        ("3", nn.Conv2d(96, 256, 5, padding=2, groups=2)), ("r3", nn.ReLU()), ("n3", nn.LocalResponseNorm(**norm)),
        ("p3", nn.MaxPool2d(3, 2)),
        ("6", nn.Conv2d(256, 384, 3, padding=1)), ("r6", nn.ReLU()),
        ("8", nn.Conv2d(384, 384, 3, padding=1, groups=2)), ("r8", nn.ReLU()),
        ("10", nn.Conv2d(384, 256, 3, padding=1, groups=2)), ("r10", nn.ReLU()), ("p10", nn.MaxPool2d(3, 2)),
    ]  # fmt: skip

    class TwoTowers(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential()
            for name, layer in layers:
                self.features.add_module(name, layer)
            self.classifier = nn.Sequential(
                nn.Flatten(), nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout(),
                nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000),
            )  # fmt: skip

        def forward(self, x):
            return self.classifier(self.features(x))

    return TwoTowers()


def write(folder: Path, patterns: list[str]) -> None:
    """Random weights, an input and the output of every network whose maker matches a pattern."""
    import torch

    fake, torch.library.register_fake = torch.library.register_fake, lambda *_, **__: lambda f: f
    import timm  # torchvision's compiled operations, which no network here needs, may be of another build
    import torchvision

    torch.library.register_fake = fake
    folder.mkdir(parents=True, exist_ok=True)
    for maker, _, _, size, _ in ROWS:
        if patterns and not any(fnmatch.fnmatch(maker, pattern) for pattern in patterns):
            continue
        torch.manual_seed(0)
        library, _, name = maker.rpartition(":")
        if library == "torchvision":
            model = getattr(torchvision.models, name)(weights=None)
        else:
            model = timm.create_model(name) if library else globals()[name]()
        model.eval()
        with torch.no_grad():
            for module in model.modules():
                norm = hasattr(module, "num_groups") or hasattr(module, "running_mean")
                if norm:
                    module.weight.uniform_(0.5, 1.0)
                if getattr(module, "bias", None) is not None:
                    module.bias.uniform_(-0.5, 0.5)
                if hasattr(module, "running_mean"):
                    module.running_mean.uniform_(-0.5, 0.5)
                    module.running_var.uniform_(0.5, 1.5)
            x = torch.randn(2, 3, size, size)
            y = model(x)
        state = {key: value.numpy() for key, value in model.state_dict().items() if "num_batches" not in key}
        target = folder / f"{maker.replace(':', '-')}.npz"
        np.savez(target, **state, **{f"{SEEN} x": x.numpy(), f"{SEEN} y": y.numpy()})
        print(maker, f"{float(y.abs().max()):.3g}", flush=True)


def our_name(module: str, names) -> str:
    """Our layer for a module of torch's."""
    for pattern, ours in names:
        if found := re.fullmatch(pattern, module):

            def number(match, found=found):
                text = found[int(match[1])]
                return str(int(text) + int(match[2])) if match[2] else text

            return re.sub(r"\{(\d)(?:\+(\d))?\}", number, ours)
    raise LookupError(f"no layer for {module!r}")


def our_leaves(state, names, flat: tuple[int, int, int] | None = None):
    """Torch's tensors under our paths, in our layouts; `flat` is the map (H, W, C) that the first dense layer reads."""
    leaves = {}
    for key, value in state.items():
        module, _, leaf = key.removeprefix("module.").rpartition(".")
        layer = our_name(module, names)
        if leaf == "weight" and value.ndim == 1:
            leaf = "scale"
        elif leaf == "weight":
            leaf = "kernel"
            if value.ndim == 2 and flat and value.shape[1] == np.prod(flat):  # from channels first
                height, width, channels = flat
                value = value.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(value.shape)
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        leaf = {"running_mean": "mean", "running_var": "var"}.get(leaf, leaf)
        leaves[f"{layer}/{leaf}"] = value
    return leaves


def check(folder: Path) -> None:
    """A row for every network that `write` has written."""
    import jax
    from flax import nnx

    from cnnjax.functional import leaves_of, named_variables
    from cnnjax.models import create

    print("| network | options | parameters | largest relative difference | s |\n| --- | --- | --- | --- | --- |")
    worst = 0.0
    for maker, name, options, size, names in ROWS:
        file = folder / f"{maker.replace(':', '-')}.npz"
        if not file.exists():
            continue
        start = time.perf_counter()
        with np.load(file) as found:
            state = {key: found[key] for key in found.files if not key.startswith(SEEN)}
            x, want = found[f"{SEEN} x"], found[f"{SEEN} y"]
        settings = {"classifier_activation": None, "input_shape": (size, size, 3), **options}
        model = nnx.eval_shape(partial(create, name, **settings), rngs=nnx.Rngs(0))
        flat = (6, 6, 256) if name == "alexnet" else None
        given, wanted = our_leaves(state, names, flat), leaves_of(model, (nnx.Param, nnx.BatchStat))
        for path, leaf in wanted.items():
            if path == "predictions/kernel" and given[path].ndim == 4:  # a 1x1 convolution in BiT
                given[path] = given[path][0, 0]
            if given[path].shape != leaf.shape:
                raise ValueError(f"{maker}: {path} is {given[path].shape} in torch, {leaf.shape} here")
        if set(given) != set(wanted):
            raise ValueError(f"{maker}: {sorted(set(given) ^ set(wanted))} are on one side only")
        for path, variable in named_variables(model).items():
            if path in given:
                variable.set_value(jax.numpy.asarray(given[path]))
        model.eval()
        got = np.asarray(jax.jit(lambda m, x: m(x))(model, x.transpose(0, 2, 3, 1)))
        error = float(np.abs(got - want).max() / np.abs(want).max())
        worst = max(worst, error)
        count = sum(leaf.size for leaf in leaves_of(model, nnx.Param).values())
        print(
            f"| {maker} | {name} {options} | {count:,} | {error:.1e} | {time.perf_counter() - start:.0f} |", flush=True
        )
    sys.exit(worst > LIMIT)


if __name__ == "__main__":
    step, folder = sys.argv[1], Path(sys.argv[2])
    if step == "write":
        write(folder, sys.argv[3:])
    else:
        check(folder)
