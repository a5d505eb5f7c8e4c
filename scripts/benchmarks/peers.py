"""The peers' side of the jobs: `python peers.py SYSTEM JOB`, in an environment of their own that knows no cnnjax.

Systems: keras-tensorflow, keras-torch, keras-jax, torch (channels last). Float32, two threads, random pixels, the same
shapes and batches for all. The process says when it is ready, then does the job once for each line it is sent, and
answers with its seconds; `scripts/benchmark.py` drives it.
"""

import json
import os
import resource
import sys
import time

START = time.perf_counter()
SYSTEM, JOB = sys.argv[1:3]
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
if SYSTEM.startswith("keras-"):
    os.environ["KERAS_BACKEND"] = SYSTEM.removeprefix("keras-")

import numpy as np  # noqa: E402

RANDOM = np.random.default_rng(0)


def pixels(count, size, scale=1.0):
    return RANDOM.random((count, size, size, 3), np.float32) * scale


def answers(count):
    return RANDOM.integers(0, 2, (count, 1)).astype(np.float32)


class Keras:
    """Jobs as the lecture writes them: `fit` and `predict`."""

    def __init__(self):
        import keras

        if SYSTEM == "keras-torch":
            import torch

            torch.set_num_threads(2)
        self.keras, self.layers = keras, keras.layers

    def predicting(self, model, size, count, batch):
        x = pixels(count, size)
        return (lambda: model.predict(x, batch_size=batch, verbose=0)), count

    def fitting(self, inputs, logits, x, batch):
        model = self.keras.Model(inputs, self.layers.Activation("sigmoid")(logits))
        model.compile(loss="binary_crossentropy", optimizer="rmsprop", metrics=["accuracy"])
        y = answers(len(x))
        return (lambda: model.fit(x, y, batch_size=batch, epochs=1, verbose=0)), len(x)

    def head(self, x):
        x = self.layers.Dense(256)(self.layers.Flatten()(x))
        return self.layers.Dense(1)(self.layers.Dropout(0.5)(x))

    def backbone(self, name, size, **options):
        return getattr(self.keras.applications, name)(
            weights=None, include_top=False, input_shape=(size, size, 3), **options
        )

    def features_mobilenet(self):
        return self.predicting(self.backbone("MobileNet", 160), 160, 160, 20)

    def features_vgg16(self):
        return self.predicting(self.backbone("VGG16", 180), 180, 24, 8)

    def train_lecture(self):
        inputs = x = self.keras.Input((150, 150, 3))
        for width in (32, 64, 128, 128):
            x = self.layers.MaxPooling2D(2)(self.layers.Conv2D(width, 3, activation="relu")(x))
        x = self.layers.Dense(512, activation="relu")(self.layers.Flatten()(x))
        return self.fitting(inputs, self.layers.Dense(1)(x), pixels(128, 150), 32)

    def train_mobilenet(self):
        base = self.backbone("MobileNet", 160, pooling="avg")
        return self.fitting(base.input, self.layers.Dense(1)(base.output), pixels(64, 160), 16)

    def head_mobilenet(self):
        inputs = self.keras.Input((5, 5, 1024))
        return self.fitting(inputs, self.head(inputs), RANDOM.random((2000, 5, 5, 1024), np.float32), 20)

    def vgg16(self, trainable, before=lambda x: x):
        base = self.backbone("VGG16", 180)
        for layer in base.layers[: len(base.layers) - trainable]:
            layer.trainable = False
        inputs = self.keras.Input((180, 180, 3))
        maps = base(self.keras.applications.vgg16.preprocess_input(before(inputs)))
        return self.fitting(inputs, self.head(maps), pixels(32, 180, 255.0), 16)

    def augmented_vgg16(self):
        kinds = self.layers
        steps = [kinds.RandomFlip("horizontal"), kinds.RandomRotation(0.1), kinds.RandomZoom(0.2)]
        return self.vgg16(0, self.keras.Sequential(steps))

    def finetune_vgg16(self):
        return self.vgg16(4)


class Torch:
    """The same networks in plain PyTorch, eager, channels last."""

    def __init__(self):
        import torch
        from torch import nn

        torch.set_num_threads(2)
        torch.manual_seed(0)
        self.torch, self.nn = torch, nn

    def images(self, x):
        rows = self.torch.from_numpy(np.moveaxis(x, -1, 1).copy())
        return rows.contiguous(memory_format=self.torch.channels_last)

    def last(self, model):
        return model.to(memory_format=self.torch.channels_last)

    def vgg16(self):
        nn, stack, depth = self.nn, [], 3
        for width, times in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(times):
                stack += [nn.Conv2d(depth, width, 3, padding=1), nn.ReLU(inplace=True)]
                depth = width
            stack.append(nn.MaxPool2d(2))
        return self.last(nn.Sequential(*stack))

    def mobilenet(self):
        nn, stack, depth = self.nn, [], 32

        def convolution(kernel, ins, outs, stride, groups=1):
            layer = nn.Conv2d(ins, outs, kernel, stride, kernel // 2, groups=groups, bias=False)
            return [layer, nn.BatchNorm2d(outs), nn.ReLU6(inplace=True)]

        stack += convolution(3, 3, depth, 2)
        wide = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
        for width, stride in wide:
            stack += convolution(3, depth, depth, stride, depth) + convolution(1, depth, width, 1)
            depth = width
        return self.last(nn.Sequential(*stack))

    def head(self, inputs):
        nn = self.nn
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 256), nn.Dropout(0.5), nn.Linear(256, 1))

    def inferring(self, model, x, batch):
        model.eval()

        def work():
            with self.torch.inference_mode():
                for start in range(0, len(x), batch):
                    model(x[start : start + batch])

        return work, len(x)

    def training(self, model, x, batch):
        loss = self.nn.functional.binary_cross_entropy_with_logits
        optimizer = self.torch.optim.RMSprop([p for p in model.parameters() if p.requires_grad], 1e-3)
        y = self.torch.from_numpy(answers(len(x)))

        def work():
            for start in range(0, len(x), batch):
                part = slice(start, start + batch)
                optimizer.zero_grad()
                loss(model(x[part]), y[part]).backward()
                optimizer.step()

        return work, len(x)

    def features_mobilenet(self):
        return self.inferring(self.mobilenet(), self.images(pixels(160, 160)), 20)

    def features_vgg16(self):
        return self.inferring(self.vgg16(), self.images(pixels(24, 180)), 8)

    def train_lecture(self):
        nn, stack, depth = self.nn, [], 3
        for width in (32, 64, 128, 128):
            stack += [nn.Conv2d(depth, width, 3), nn.ReLU(), nn.MaxPool2d(2)]
            depth = width
        stack += [nn.Flatten(), nn.Linear(6272, 512), nn.ReLU(), nn.Linear(512, 1)]
        return self.training(self.last(nn.Sequential(*stack)), self.images(pixels(128, 150)), 32)

    def train_mobilenet(self):
        nn = self.nn
        model = nn.Sequential(self.mobilenet(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 1))
        return self.training(model, self.images(pixels(64, 160)), 16)

    def head_mobilenet(self):
        rows = self.torch.from_numpy(RANDOM.random((2000, 25600), np.float32))
        return self.training(self.head(25600), rows, 20)

    def finetune_vgg16(self):
        base = self.vgg16()
        for p in base[:24].parameters():
            p.requires_grad_(False)
        return self.training(self.nn.Sequential(base, self.head(12800)), self.images(pixels(32, 180, 255.0)), 16)


def main():
    system = Torch() if SYSTEM == "torch" else Keras()
    imported = time.perf_counter() - START
    make = getattr(system, JOB.replace("-", "_"), None)
    if make is None:
        raise SystemExit(f"no job {JOB} for {SYSTEM}")
    work, units = make()
    begun = time.perf_counter()
    work()
    print(json.dumps({"import_s": imported, "first_call_s": time.perf_counter() - begun, "units": units}), flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        work()
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
