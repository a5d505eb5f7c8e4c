"""ResNet-18 with few channels, as somebody who has never heard of this library writes it."""

import jax
from flax import nnx


def normalisation(kind, channels, rngs):
    if kind == "group":
        return nnx.GroupNorm(channels, num_groups=2, rngs=rngs)
    return nnx.BatchNorm(channels, momentum=0.9, rngs=rngs)


class Join(nnx.Module):
    """A block of two inputs."""

    def __call__(self, main, shortcut):
        return jax.nn.relu(main + shortcut)


class Block(nnx.Module):
    def __init__(self, inside, outside, stride, norm, rngs):
        self.join = Join()
        if stride != 1 or inside != outside:
            self.down = nnx.Conv(inside, outside, (1, 1), strides=stride, use_bias=False, rngs=rngs)
            self.down_norm = normalisation(norm, outside, rngs)
        else:
            self.down = None
        self.conv2 = nnx.Conv(outside, outside, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = normalisation(norm, outside, rngs)
        self.conv1 = nnx.Conv(inside, outside, (3, 3), strides=stride, use_bias=False, rngs=rngs)
        self.norm1 = normalisation(norm, outside, rngs)

    def __call__(self, x):
        main = self.norm2(self.conv2(jax.nn.relu(self.norm1(self.conv1(x)))))
        return self.join(main, x if self.down is None else self.down_norm(self.down(x)))


class ResNet(nnx.Module):
    """Images f32[N, H, W, C] to maps f32[N, h, w, 8 * width]."""

    def __init__(self, input_shape, width=4, blocks=(2, 2, 2, 2), norm="batch", *, rngs: nnx.Rngs):
        self.stages = nnx.List()
        channels = width
        for stage, count in enumerate(blocks):
            made = []
            for k in range(count):
                made.append(Block(channels, width * 2**stage, 2 if stage and not k else 1, norm, rngs))
                channels = width * 2**stage
            self.stages.append(nnx.List(made))
        self.norm = normalisation(norm, width, rngs)
        self.stem = nnx.Conv(input_shape[-1], width, (3, 3), strides=2, use_bias=False, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.norm(self.stem(x)))
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return x


model = ResNet
