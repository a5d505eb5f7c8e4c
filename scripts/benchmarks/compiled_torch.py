"""PyTorch's side of the jobs for a GPU, compiled, channels last: `compiled_torch.py JOB SIZE BATCH PRECISION`.

The same networks, shapes and optimizer (RMSprop, whose step is PyTorch's own and not compiled), images in the
device's memory; no cnnjax is needed. Nothing is stored: `vgg16-stored` runs all of VGG16 in each step, as a later epoch
does. It answers line by line, as the jobs of `peers.py` do.
"""

import json
import sys
import time

START = time.perf_counter()

import torch  # noqa: E402
from torch import nn  # noqa: E402

STEPS = 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Normed(nn.Sequential):
    def __init__(self, size, ins, outs, stride):
        super().__init__(nn.Conv2d(ins, outs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outs))


class Bottleneck(nn.Module):
    def __init__(self, ins, width, stride):
        super().__init__()
        self.reduce, self.inner = Normed(1, ins, width, 1), Normed(3, width, width, stride)
        self.expand = Normed(1, width, 4 * width, 1)
        self.shortcut = Normed(1, ins, 4 * width, stride) if ins != 4 * width or stride > 1 else nn.Identity()

    def forward(self, x):
        y = self.expand(self.inner(self.reduce(x).relu()).relu())
        return (y + self.shortcut(x)).relu()


def resnet50(size):
    stack, ins = [Normed(7, 3, 64, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for k in range(count):
            stack.append(Bottleneck(ins, width, stride if k == 0 else 1))
            ins = 4 * width
    return nn.Sequential(*stack, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(ins, 1))


def vgg16(size):
    stack, depth = [], 3
    for width, times in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(times):
            stack += [nn.Conv2d(depth, width, 3, padding=1), nn.ReLU()]
            depth = width
        stack.append(nn.MaxPool2d(2))
    for layer in stack[:24]:
        layer.requires_grad_(False)
    head = [nn.Flatten(), nn.Linear(512 * (size // 32) ** 2, 256), nn.Dropout(0.5), nn.Linear(256, 1)]
    return nn.Sequential(*stack, *head)


def main():
    job, size, batch, precision = sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4]
    imported, count, flips = time.perf_counter() - START, STEPS * batch, job == "vgg16"
    torch.backends.cudnn.benchmark = True  # XLA, too, times cuDNN's algorithms
    torch.set_float32_matmul_precision("high")
    model = {"resnet50": resnet50, "vgg16": vgg16, "vgg16-stored": vgg16}[job](size).to(
        DEVICE, memory_format=torch.channels_last
    )
    optimizer = torch.optim.RMSprop([p for p in model.parameters() if p.requires_grad], 1e-3, 0.9, 1e-7)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=DEVICE)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 2, (count, 1), device=DEVICE).float()

    @torch.compile
    def loss_of(x, wanted):
        x = x.float()
        if flips:
            x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(x / 127.5 - 1)
        return nn.functional.binary_cross_entropy_with_logits(logits.float(), wanted)

    def work():
        order = torch.randperm(count, device=DEVICE)
        for start in range(0, count, batch):
            rows = order[start : start + batch]
            optimizer.zero_grad()
            loss_of(pixels[rows], y[rows]).backward()
            optimizer.step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    begun = time.perf_counter()
    work()
    print(json.dumps({"import_s": imported, "first_call_s": time.perf_counter() - begun, "units": count}), flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        work()
        peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0
        print(json.dumps({"seconds": time.perf_counter() - begun, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
