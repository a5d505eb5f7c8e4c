"""The builder in which architectures are written: one call a layer, and the network can be seen to run."""

from collections.abc import Iterable, Sequence
from typing import Any

from flax import nnx

from cnnjax.models import layers
from cnnjax.models.backbone import INPUT, Backbone, Shape
from cnnjax.models.sizes import Pair, correct_pad, joined, pair, pairs, pooled, same_shapes, window_padding, zeros
from cnnjax.models.tensors import Tensor, counted, traced_shape


class Graph:
    """Builds a `Backbone`, layer by layer, in the order of the calls; random numbers are drawn in that order too.

    Every method but `backbone` adds a layer: its first argument is the layer's name (as Keras has it), then come the
    tensors that it reads and its settings. Numbers of input channels are inferred. A size is one number for both axes
    or (height, width); padding is "valid", "same", a number of zeros on every side, (above and below, left and right),
    or ((above, below), (left, right)).

    Args:
        input_shape: Of one example, (H, W, C) for images; None for any height or width.
        rngs: Keys for weights and dropout.
        name: What the network is called in tables and images.
        input_layer: The input's name, which Keras counts as a layer; None where it does not (Sequential).

    Attributes:
        input: The tensor that the first layers read.

    Raises:
        ValueError: A layer's settings or inputs do not fit, or nothing is left of the images; the layer is named.

    >>> net = Graph((32, 32, 3), rngs=nnx.Rngs(0), name="two_ways")
    >>> x = net.conv("conv", net.input, 8, 3, strides=2, padding=1, bias=False)
    >>> x = net.activation("relu", net.batch_norm("bn", x), "relu")
    >>> y = net.conv("side", x, 8, 1)
    >>> model = net.backbone(net.add("add", x, y))
    >>> model.layer_names, model.output_shape()
    (('input_layer', 'conv', 'bn', 'relu', 'side', 'add'), (16, 16, 8))
    """

    def __init__(
        self,
        input_shape: Shape,
        *,
        rngs: nnx.Rngs,
        name: str = "backbone",
        input_layer: str | None = "input_layer",
    ):
        self._rngs, self._name, self._input_shape = rngs, name, tuple(input_shape)
        self._layers: dict[str, Any] = {}
        self._reads: dict[str, tuple[str, ...]] = {}
        self._unnamed: dict[str, int] = {}
        self.input = Tensor(INPUT, self._input_shape, self)
        if input_layer is not None:
            self.input = self._add(input_layer, layers.InputLayer(), (self.input,), self._input_shape)

    def backbone(self, end: Tensor, *, alpha: float | None = None) -> Backbone:
        """The network that gives `end`.

        Args:
            end: The last layer's output.
            alpha: The width multiplier, for architectures that have one.

        Raises:
            ValueError: What some layer gives does not lead to `end`.
        """
        self._own("the end", (end,))
        # The end stands last: it may have been built before others, whose loss is then told.
        named = [(name, layer) for name, layer in self._layers.items() if name != end.name]
        named += [(end.name, self._layers[end.name])] if end.name else []
        return Backbone(named, input_shape=self._input_shape, inputs=self._reads, alpha=alpha, name=self._name)

    def unnamed(self, kind: str) -> str:
        """The name that Keras gives the next layer of a kind that has none: conv2d, conv2d_1, conv2d_2.

        >>> net = Graph((8, 8, 3), rngs=nnx.Rngs(0))
        >>> net.unnamed("conv2d"), net.unnamed("add"), net.unnamed("conv2d")
        ('conv2d', 'add', 'conv2d_1')
        """
        number = self._unnamed[kind] = self._unnamed.get(kind, -1) + 1
        return f"{kind}_{number}" if number else kind

    def operation(self, x: Tensor) -> Tensor:
        """Mark the layer that gave `x` as arithmetic on tensors (`x + y`), which Keras does not count as a layer.

        It is no part of `Backbone.layers`, and slices (`Freeze.slice`) do not count it.

        >>> net = Graph((8, 8, 3), rngs=nnx.Rngs(0))
        >>> model = net.backbone(net.operation(net.add("sum", net.input, net.input)))
        >>> model.layer_names, len(model.layers)
        (('input_layer', 'sum'), 1)
        """
        if x.graph is not self or x.name not in self._layers:
            raise ValueError(f"{x.name!r} is no layer of {self._name}")
        self._layers[x.name].operation = True
        return x

    def layer(self, name: str, module: nnx.Module, *inputs: Tensor) -> Tensor:
        """Add any module that takes as many arrays as it has inputs, and gives one.

        >>> net = Graph((None, None, 3), rngs=nnx.Rngs(0))
        >>> net.layer("mine", nnx.Conv(3, 5, (3, 3), strides=2, rngs=nnx.Rngs(0)), net.input).shape
        (None, None, 5)
        """
        self._own(name, inputs)
        return self._add(name, module, inputs, traced_shape(name, module, inputs))

    def nested(self, name: str, network: Backbone, x: Tensor, shape: Shape) -> Tensor:
        """A network as one layer (Keras's model in a model), which gives `shape`; its layers are `name/layer`."""
        self._own(name, (x,))
        return self._add(name, network, (x,), shape)

    def conv(
        self,
        name: str,
        x: Tensor,
        filters: int,
        kernel_size: int | Pair,
        *,
        strides: int | Pair = 1,
        padding: Any = "valid",
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        activation: str = "linear",
        standardized: bool = False,
    ) -> Tensor:
        """Convolve to `filters` channels (Keras's `Conv2D`), by kernels of mean 0 and deviation 1 if `standardized`."""
        self._own(name, (x,))
        if filters < 1 or groups < 1 or x.channels % groups or filters % groups:
            raise ValueError(
                f"layer {name!r}: {groups} groups do not divide {x.channels} channels and {filters} filters"
            )
        size, step, spread = pair(name, kernel_size), pair(name, strides), pair(name, dilation)
        pads = window_padding(name, padding)
        shape = pooled(name, x.shape, size, step, pads, spread)
        layer = layers.conv2d(
            x.channels, filters, size, step,
            padding=pads, dilation=spread, groups=groups, use_bias=bias, activation=activation,
            standardized=standardized, rngs=self._rngs,
        )  # fmt: skip
        return self._add(name, layer, (x,), (*shape[:-1], filters))

    def depthwise_conv(
        self,
        name: str,
        x: Tensor,
        kernel_size: int | Pair,
        *,
        strides: int | Pair = 1,
        padding: Any = "valid",
        dilation: int | Pair = 1,
        multiplier: int = 1,
        bias: bool = True,
        activation: str = "linear",
    ) -> Tensor:
        """Convolve each channel by itself (Keras's `DepthwiseConv2D`)."""
        self._own(name, (x,))
        size, step, spread = pair(name, kernel_size), pair(name, strides), pair(name, dilation)
        pads = window_padding(name, padding)
        shape = pooled(name, x.shape, size, step, pads, spread)
        layer = layers.depthwise_conv2d(
            x.channels, size, step,
            padding=pads, dilation=spread, multiplier=multiplier, use_bias=bias, activation=activation, rngs=self._rngs,
        )  # fmt: skip
        return self._add(name, layer, (x,), (*shape[:-1], x.channels * multiplier))

    def separable_conv(
        self,
        name: str,
        x: Tensor,
        filters: int,
        kernel_size: int | Pair,
        *,
        strides: int | Pair = 1,
        padding: Any = "valid",
        dilation: int | Pair = 1,
        multiplier: int = 1,
        bias: bool = True,
        activation: str = "linear",
    ) -> Tensor:
        """Convolve each channel by itself, then all to `filters` channels by 1x1 (Keras's `SeparableConv2D`)."""
        self._own(name, (x,))
        size, step, spread = pair(name, kernel_size), pair(name, strides), pair(name, dilation)
        pads = window_padding(name, padding)
        shape = pooled(name, x.shape, size, step, pads, spread)
        layer = layers.separable_conv2d(
            x.channels, filters, size, step,
            padding=pads, dilation=spread, multiplier=multiplier, use_bias=bias, activation=activation, rngs=self._rngs,
        )  # fmt: skip
        return self._add(name, layer, (x,), (*shape[:-1], filters))

    def dense(self, name: str, x: Tensor, units: int, *, bias: bool = True, activation: str = "linear") -> Tensor:
        """Map the last axis to `units` (Keras's `Dense`)."""
        self._own(name, (x,))
        layer = layers.dense(x.channels, units, use_bias=bias, activation=activation, rngs=self._rngs)
        return self._add(name, layer, (x,), (*x.shape[:-1], units))

    def batch_norm(
        self,
        name: str,
        x: Tensor,
        *,
        epsilon: float = 1e-3,
        momentum: float = 0.99,
        scale: bool = True,
        center: bool = True,
    ) -> Tensor:
        """Normalise each channel over the batch; `momentum` is what stays of the statistics in a step.

        `scale` and `center` tell whether a trainable factor and term follow (Keras's gamma and beta).
        """
        self._own(name, (x,))
        layer = layers.batch_normalization(
            x.channels, epsilon=epsilon, momentum=momentum, scale=scale, center=center, rngs=self._rngs
        )
        return self._add(name, layer, (x,), x.shape)

    def layer_norm(self, name: str, x: Tensor, *, epsilon: float = 1e-3) -> Tensor:
        """Normalise each position over its channels (Keras's `LayerNormalization`)."""
        self._own(name, (x,))
        return self._add(name, layers.layer_normalization(x.channels, epsilon=epsilon, rngs=self._rngs), (x,), x.shape)

    def group_norm(self, name: str, x: Tensor, groups: int = 32, *, epsilon: float = 1e-3) -> Tensor:
        """Normalise each group of channels over height and width (Keras's `GroupNormalization`)."""
        self._own(name, (x,))
        if groups < 1 or x.channels % groups:
            raise ValueError(f"layer {name!r}: {groups} groups do not divide {x.channels} channels")
        layer = layers.group_normalization(x.channels, groups, epsilon=epsilon, rngs=self._rngs)
        return self._add(name, layer, (x,), x.shape)

    def layer_scale(self, name: str, x: Tensor, *, initial: float = 1e-6) -> Tensor:
        """Multiply each channel by a trainable factor."""
        self._own(name, (x,))
        return self._add(name, layers.LayerScale(x.channels, initial), (x,), x.shape)

    def activation(self, name: str, x: Tensor, activation: str) -> Tensor:
        """Apply one of `cnnjax.models.layers.ACTIVATIONS`."""
        return self._same(name, layers.Activation(activation), x)

    def relu(self, name: str, x: Tensor, max_value: float | None = None) -> Tensor:
        """max(x, 0), at most `max_value` (Keras's `ReLU`)."""
        return self._same(name, layers.ReLU(max_value), x)

    def rescale(
        self, name: str, x: Tensor, scale: float | Sequence[float], offset: float | Sequence[float] = 0.0
    ) -> Tensor:
        """scale x + offset, one number for all or one a channel (Keras's `Rescaling`)."""
        fixed = [tuple(v) if isinstance(v, Iterable) else v for v in (scale, offset)]
        return self._same(name, layers.Rescaling(*fixed), x)

    def normalization(
        self, name: str, x: Tensor, mean: Sequence[float] | None = None, variance: Sequence[float] | None = None
    ) -> Tensor:
        """(x - mean) / deviation for each channel (Keras's `Normalization`).

        Without `mean` and `variance` they are leaves that come with the weights, and no training changes them.
        """
        self._own(name, (x,))
        if (mean is None) != (variance is None):
            raise ValueError(f"layer {name!r}: give both mean and variance, or neither; found {mean} and {variance}")
        if mean is None or variance is None:
            return self._add(name, layers.Normalization(x.channels), (x,), x.shape)
        if (len(mean), len(variance)) != (x.channels, x.channels):
            raise ValueError(
                f"layer {name!r}: {len(mean)} means and {len(variance)} variances for {x.channels} channels"
            )
        return self._add(name, layers.Standardization(tuple(mean), tuple(variance)), (x,), x.shape)

    def dropout(self, name: str, x: Tensor, rate: float, *, whole_image: bool = False) -> Tensor:
        """Drop numbers while training; with `whole_image` an example's all at once: stochastic depth.

        The latter is Keras's `Dropout(rate, noise_shape=(None, 1, 1, 1))` and its ConvNeXt's `StochasticDepth`: each
        example by itself, and what stays is divided by 1 - rate.
        """
        axes = tuple(range(1, len(x.shape) + 1)) if whole_image else ()
        return self._same(name, nnx.Dropout(rate, broadcast_dims=axes, rngs=self._rngs), x)

    def halving_pad(self, name: str, x: Tensor, kernel_size: int) -> Tensor:
        """The zeros before a convolution of stride 2 and padding "valid" (Keras's `ZeroPadding2D(correct_pad(...))`).

        Keras takes a size that is not known for an even one. Here the images' own decides, so that a network for any
        size gives what the one for that size gives.
        """
        self._own(name, (x,))
        around = correct_pad(x.shape, kernel_size)
        if None not in x.shape:
            return self.zero_padding(name, x, around)
        known = zip(zeros(x.shape, around), x.shape, strict=True)
        shape = tuple(n if have is not None else None for n, have in known)
        return self._add(name, layers.HalvingPadding2D(kernel_size), (x,), shape)

    def zero_padding(self, name: str, x: Tensor, padding: Any) -> Tensor:
        """Put zeros around the images (Keras's `ZeroPadding2D`). A convolution behind it takes them for its own."""
        self._own(name, (x,))
        around = pairs(name, padding)
        return self._add(name, layers.ZeroPadding2D(around), (x,), zeros(x.shape, around))

    def max_pool(
        self, name: str, x: Tensor, pool_size: int | Pair = 2, strides: int | Pair | None = None, padding: Any = "valid"
    ) -> Tensor:
        """The largest value of each window (Keras's `MaxPooling2D`); what is padded never wins."""
        self._own(name, (x,))
        size, pads = pair(name, pool_size), window_padding(name, padding)
        step = size if strides is None else pair(name, strides)
        shape = pooled(name, x.shape, size, step, pads)
        return self._add(name, layers.MaxPooling2D(size, step, pads), (x,), shape)

    def avg_pool(
        self,
        name: str,
        x: Tensor,
        pool_size: int | Pair = 2,
        strides: int | Pair | None = None,
        padding: Any = "valid",
        *,
        count_padding: bool = False,
    ) -> Tensor:
        """The mean of each window (Keras's `AveragePooling2D`), zeros counted or not."""
        self._own(name, (x,))
        size, pads = pair(name, pool_size), window_padding(name, padding)
        step = size if strides is None else pair(name, strides)
        shape = pooled(name, x.shape, size, step, pads)
        return self._add(name, layers.AveragePooling2D(size, step, pads, count_padding), (x,), shape)

    def global_avg_pool(self, name: str, x: Tensor, *, keepdims: bool = False) -> Tensor:
        """The mean over height and width."""
        return self._globally(name, layers.GlobalAveragePooling2D(keepdims), x, keepdims)

    def global_max_pool(self, name: str, x: Tensor, *, keepdims: bool = False) -> Tensor:
        """The largest value over height and width."""
        return self._globally(name, layers.GlobalMaxPooling2D(keepdims), x, keepdims)

    def add(self, name: str, *inputs: Tensor) -> Tensor:
        """The sum of maps of one shape."""
        self._own(name, inputs)
        return self._add(name, layers.Add(), inputs, same_shapes(name, [(x.name, x.shape) for x in inputs]))

    def multiply(self, name: str, *inputs: Tensor) -> Tensor:
        """The product; axes of size 1 (after a global pooling with `keepdims`) are repeated."""
        self._own(name, inputs)
        shape = same_shapes(name, [(x.name, x.shape) for x in inputs], repeats=True)
        return self._add(name, layers.Multiply(), inputs, shape)

    def concat(self, name: str, *inputs: Tensor) -> Tensor:
        """Maps beside each other, along the channels (Keras's `Concatenate`)."""
        self._own(name, inputs)
        shape = joined(name, [(x.name, x.shape) for x in inputs])
        return self._add(name, layers.Concatenate(), inputs, shape)

    def reshape(self, name: str, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Each example in another shape."""
        self._own(name, (x,))
        have = counted(x.shape)
        if have is not None and have != counted(shape):
            raise ValueError(f"layer {name!r} cannot shape {x.shape} as {tuple(shape)}")
        return self._add(name, layers.Reshape(tuple(shape)), (x,), tuple(shape))

    def flatten(self, name: str, x: Tensor) -> Tensor:
        """Each example as one row."""
        self._own(name, (x,))
        return self._add(name, layers.Flatten(), (x,), (counted(x.shape),))

    def _same(self, name: str, module: nnx.Module, x: Tensor) -> Tensor:
        self._own(name, (x,))
        return self._add(name, module, (x,), x.shape)

    def _globally(self, name: str, module: nnx.Module, x: Tensor, keepdims: bool) -> Tensor:
        self._own(name, (x,))
        return self._add(name, module, (x,), (1, 1, x.channels) if keepdims else (x.channels,))

    def _own(self, name: str, inputs: Sequence[Tensor]) -> None:
        """Refuse what is no tensor of this graph, and a name that is taken."""
        if name in self._layers:
            raise ValueError(f"{self._name} has two layers {name!r}; each needs a name of its own")
        for x in inputs:
            if not isinstance(x, Tensor) or x.graph is not self:
                what = f"a tensor of another graph ({x.name!r})" if isinstance(x, Tensor) else repr(x)
                raise ValueError(f"layer {name!r} of {self._name} reads {what}; give what a layer of this graph gave")

    def _add(self, name: str, module: nnx.Module, inputs: Sequence[Tensor], shape: Shape) -> Tensor:
        if any(n is not None and n < 1 for n in shape):
            raise ValueError(f"input of shape {self._input_shape} is too small: layer {name!r} leaves {shape} of it")
        self._layers[name], self._reads[name] = module, tuple(x.name for x in inputs)
        return Tensor(name, shape, self)
