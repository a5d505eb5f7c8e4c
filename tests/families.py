"""Every family beside `keras.applications`: which of our networks is which of Keras's, and how two are compared.

`tests/models/test_families.py` compares one small network a family, `scripts/parity.py families` every variant.
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from flax import nnx

from cnnjax.models import create
from cnnjax.models.weightless import is_operation


@dataclass(frozen=True)
class Pair:
    """One of our networks and Keras's that it should be.

    Attributes:
        name, options: What `create` is called with.
        builder: Keras's function, `module.function` of `keras.applications`.
        arguments: What that is called with.
        shape: Of the images on which both are built, height, width and channels.
        layers: Whose outputs are compared.
        depths: Three layers up to which the network is frozen, where stored features are compared.
        small: Options of a small network of ours for training.
        end: The layer at which that ends, so that it is compiled sooner; its last one if not given.
        drops: Whether it has stochastic depth.
        inputs: (lowest, highest) of the random images.
    """

    name: str
    options: Mapping[str, Any]
    builder: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, int, int] = (64, 64, 3)
    layers: tuple[str, ...] = ()
    depths: tuple[str, ...] = ()
    small: Mapping[str, Any] = field(default_factory=dict)
    end: str = ""
    drops: bool = False
    inputs: tuple[float, float] = (-1.0, 1.0)

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{value}" for value in self.options.values())])

    def theirs(self, keras: Any, **arguments: Any) -> Any:
        """Keras's network with random weights; names are counted anew."""
        keras.backend.clear_session()
        module, _, function = self.builder.partition(".")
        build = getattr(importlib.import_module(f"keras.src.applications.{module}"), function)
        return build(**{"weights": None, "input_shape": self.shape, **self.arguments, **arguments})

    def ours(self, **options: Any) -> Any:
        """Ours, abstract."""
        given = {"input_shape": self.shape, **self.options, **options}
        return nnx.eval_shape(lambda: create(self.name, rngs=nnx.Rngs(0), **given))


def _two_stages(x: Any) -> Any:
    """Of Keras's ResNet50V2."""
    theirs = importlib.import_module("keras.src.applications.resnet")
    return theirs.stack_residual_blocks_v2(
        theirs.stack_residual_blocks_v2(x, 64, 3, name="conv2"), 128, 4, name="conv3"
    )


_CONVNEXT = {"depths": (1, 2, 1, 1), "widths": (8, 12, 16, 24)}
FAMILIES = (
    Pair(
        "mobilenet_v2", {"alpha": 0.35}, "mobilenet_v2.MobileNetV2", {"alpha": 0.35}, (33, 64, 3),
        layers=("Conv1_relu", "expanded_conv_project_BN", "block_2_add", "block_6_pad", "block_15_add", "out_relu",
                "predictions"),
        end="block_4_add", depths=("Conv1_relu", "block_2_add", "block_3_depthwise_relu"), small={"alpha": 0.1},
    ),
    Pair(
        "mobilenet_v3", {"variant": "small", "alpha": 0.75}, "mobilenet_v3.MobileNetV3Small", {"alpha": 0.75},
        (33, 64, 3), inputs=(0, 255),
        layers=("activation", "expanded_conv_squeeze_excite_mul", "multiply", "expanded_conv_2_add", "activation_5",
                "expanded_conv_8_depthwise_pad", "conv_1_bn", "predictions"),
        end="expanded_conv_4_add", depths=("activation", "expanded_conv_2_add", "expanded_conv_3_squeeze_excite_mul"),
        small={"alpha": 0.1},
    ),
    Pair(
        "efficientnet", {"variant": "b0", "width_coefficient": 0.35, "depth_coefficient": 0.6},
        "efficientnet.EfficientNet",
        {"width_coefficient": 0.35, "depth_coefficient": 0.6, "default_size": 32, "name": "efficientnet"},
        (33, 64, 3), inputs=(0, 255),
        layers=("normalization", "stem_activation", "block2a_se_excite", "block3b_add", "block5a_dwconv",
                "block6b_drop", "top_activation", "predictions"),
        end="block3b_add", depths=("stem_activation", "block2b_add", "block3a_se_excite"),
        small={"width_coefficient": 0.1, "depth_coefficient": 0.6}, drops=True,
    ),
    Pair(
        "efficientnet_v2", {"variant": "b0", "width_coefficient": 0.35, "depth_coefficient": 0.5},
        "efficientnet_v2.EfficientNetV2",
        {"width_coefficient": 0.35, "depth_coefficient": 0.5, "default_size": 32, "name": "efficientnetv2-b0"},
        (33, 64, 3), inputs=(0, 255),
        layers=("normalization", "stem_activation", "block1a_project_activation", "block3a_project_bn", "block4b_add",
                "block6c_se_excite", "top_activation", "predictions"),
        end="block4b_add", depths=("stem_activation", "block3a_project_bn", "block4a_se_excite"),
        small={"width_coefficient": 0.1, "depth_coefficient": 0.5}, drops=True,
    ),
    Pair(
        "convnext", {"variant": "tiny", **_CONVNEXT, "stochastic_depth": 0.2}, "convnext.ConvNeXt",
        {"depths": [1, 2, 1, 1], "projection_dims": [8, 12, 16, 24], "name": "convnext_tiny", "drop_path_rate": 0.2},
        (37, 64, 3), inputs=(0, 255),
        layers=("convnext_tiny_prestem_normalization", "convnext_tiny_stem", "convnext_tiny_stage_0_block_0_layernorm",
                "convnext_tiny_downsampling_block_0", "convnext_tiny_stage_1_block_1_gelu",
                "convnext_tiny_stage_3_block_0_layer_scale", "convnext_tiny_head_dense"),
        depths=("convnext_tiny_stem", "add_1", "convnext_tiny_stage_2_block_0_pointwise_conv_1"),
        small={**_CONVNEXT, "layer_scale": 0.1}, drops=True,
    ),
    Pair(
        "xception", {}, "xception.Xception", {}, (71, 80, 3),
        layers=("block1_conv2_act", "batch_normalization", "block2_pool", "add_2", "block8_sepconv2_bn", "add_11",
                "block14_sepconv1_act", "predictions"),
        end="add_3", depths=("block1_conv2_act", "block3_sepconv1_bn", "add_2"),
        small={"alpha": 1 / 16, "middle_blocks": 1},
    ),
    Pair(
        "inception_v3", {}, "inception_v3.InceptionV3", {}, (75, 80, 3),
        layers=("activation_2", "max_pooling2d_1", "mixed0", "conv2d_15", "mixed3", "mixed6", "mixed8", "mixed9_1",
                "mixed10", "predictions"),
        end="mixed3", depths=("max_pooling2d", "mixed1", "batch_normalization_27"), small={"alpha": 1 / 16},
    ),
    Pair(
        "resnet_v2", {"widths": (64, 128)}, "resnet.ResNet",
        {"stack_fn": _two_stages, "preact": True, "use_bias": True}, (37, 64, 3),
        layers=("pool1_pool", "conv2_block1_out", "max_pooling2d", "conv2_block3_out", "conv3_block4_out",
                "predictions"),
        end="conv3_block1_out", depths=("pool1_pool", "conv2_block3_1_bn", "conv2_block3_out"),
        small={"widths": (2, 3)},
    ),
    Pair(
        "densenet", {"depths": (2, 3, 1, 2)}, "densenet.DenseNet", {"blocks": [2, 3, 1, 2]}, (37, 64, 3),
        layers=("pool1", "conv2_block2_concat", "pool2_pool", "conv4_block1_concat", "relu", "predictions"),
        depths=("conv1_relu", "conv2_block2_1_bn", "pool2_pool"), small={"growth": 2, "depths": (2, 2)},
    ),
    Pair(
        "nasnet", {"filters": 96, "cells": 1}, "nasnet.NASNet",
        {"penultimate_filters": 96, "num_blocks": 1, "stem_block_filters": 32, "skip_reduction": False}, (37, 64, 3),
        layers=("stem_bn1", "reduction_concat_stem_1", "normal_concat_0", "reduction_concat_reduce_1", "normal_add_3_2",
                "normal_concat_3", "predictions"),
        end="reduction_add_1_stem_2", depths=("stem_bn1", "reduction_concat_stem_1", "adjust_bn_stem_2"),
        small={"filters": 96, "cells": 1},
    ),
)  # fmt: skip
"""One small network a family; `ALL` has every variant."""


def _rows(name: str, module: str, functions: Mapping[Any, str], option: str = "variant") -> list[Pair]:
    return [Pair(name, {option: value}, f"{module}.{function}") for value, function in functions.items()]


ALL = (
    *(Pair("mobilenet_v2", {"alpha": a}, "mobilenet_v2.MobileNetV2", {"alpha": a}, (96, 96, 3))
      for a in (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)),
    *(Pair("mobilenet_v3", {"variant": v, "alpha": a, "minimalistic": m}, f"mobilenet_v3.MobileNetV3{v.title()}",
           {"alpha": a, "minimalistic": m}, (96, 96, 3))
      for v in ("small", "large") for a, m in ((1.0, False), (0.75, False), (1.0, True))),
    *_rows("efficientnet", "efficientnet", {f"b{k}": f"EfficientNetB{k}" for k in range(8)}),
    *_rows("efficientnet_v2", "efficientnet_v2",
           {k: f"EfficientNetV2{k.upper()}" for k in ("b0", "b1", "b2", "b3", "s", "m", "l")}),
    *_rows("convnext", "convnext",
           {k: f"ConvNeXt{'XLarge' if k == 'xlarge' else k.title()}"
            for k in ("tiny", "small", "base", "large", "xlarge")}),
    Pair("xception", {}, "xception.Xception", {}, (96, 96, 3)),
    Pair("inception_v3", {}, "inception_v3.InceptionV3", {}, (96, 96, 3)),
    Pair("vgg16", {}, "vgg16.VGG16", {}),
    Pair("vgg19", {}, "vgg19.VGG19", {}),
    *_rows("resnet", "resnet", {k: f"ResNet{k}" for k in (50, 101, 152)}, "depth"),
    *_rows("resnet_v2", "resnet_v2", {k: f"ResNet{k}V2" for k in (50, 101, 152)}, "depth"),
    *_rows("densenet", "densenet", {k: f"DenseNet{k}" for k in (121, 169, 201)}, "depth"),
    *_rows("nasnet", "nasnet", {k: f"NASNet{k.title()}" for k in ("mobile", "large")}),
)  # fmt: skip


def differences(ours: Any, theirs: Any) -> list[str]:
    """Where names, order, what layers read, shapes and numbers of parameters are not Keras's.

    Args:
        ours: A backbone; its leaves may be abstract.
        theirs: A model of Keras's functional form.
    """
    nodes = {node.operation.name: node for nodes in theirs._nodes_by_depth.values() for node in nodes}
    operations = [operation.name for operation in theirs.operations]
    if list(ours.layer_names) != operations:
        wrong = [(k, a, b) for k, (a, b) in enumerate(zip(ours.layer_names, operations, strict=False)) if a != b][:3]
        return [f"{len(ours.layer_names)} layers, {len(operations)} in Keras; the first that differ: {wrong}"]
    counted = [layer.name for layer in ours.layers]
    found = []
    if counted != [layer.name for layer in theirs.layers]:
        found.append(f"{len(counted)} layers are counted, {len(theirs.layers)} in Keras")
    example = jax.ShapeDtypeStruct((1, *ours.input_shape), np.float32)
    shapes = jax.eval_shape(lambda m, x: m.activations(x, m.layer_names), ours, example)
    for name, reads in zip(ours.layer_names, ours.layer_inputs, strict=True):
        node = nodes[name]
        want = [x._keras_history.operation.name for x in node.input_tensors]
        if not node.is_input and list(reads) != want:
            found.append(f"{name} reads {reads}, in Keras {want}")
        if shapes[name].shape[1:] != tuple(node.outputs[0].shape[1:]):
            found.append(f"{name} gives {shapes[name].shape[1:]}, in Keras {node.outputs[0].shape[1:]}")
        mine, own = parameters(ours.get_layer(name)), _counted(node.operation)
        if mine != own:
            found.append(f"{name} has {mine} parameters, in Keras {own}")
        if is_operation(ours.get_layer(name)) == hasattr(node.operation, "weights"):
            found.append(f"{name} is a layer in one of both")
    return found


def parameters(module: nnx.Module) -> int:
    """How many numbers of a module last, statistics included."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat))))


def _counted(layer: Any) -> int:
    """The same of a layer of Keras's, without the number of examples that its Normalization has seen."""
    return sum(int(np.prod(v.shape)) for v in getattr(layer, "weights", ()) if v.name != "count")


_RANGES = {
    "gamma": (0.5, 1.0), "beta": (-0.5, 0.5), "moving_mean": (-0.5, 0.5), "moving_variance": (0.5, 1.5),
    "bias": (-0.1, 0.1), "mean": (0.3, 0.6), "variance": (0.05, 0.2), "variable": (0.1, 0.5),
}  # fmt: skip


def randomize(model: Any, seed: int = 0, *, last: Callable[[str], bool] = lambda name: False) -> None:
    """Give every vector of a model of Keras's other random numbers, so that nothing is the identity.

    Args:
        model: Whose kernels are random already.
        seed: Of the numbers.
        last: Whether a normalisation ends a residual; its factors are small, so that many do not add up without end.
    """
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        for variable in layer._trainable_variables + layer._non_trainable_variables:
            if variable.name in _RANGES:
                low, high = (0.1, 0.2) if variable.name == "gamma" and last(layer.name) else _RANGES[variable.name]
                variable.assign(rng.uniform(low, high, variable.shape))
        if hasattr(layer, "finalize_state"):  # Normalization computes with copies
            layer.finalize_state()


def run(model: Any, x: np.ndarray, names: Sequence[str], keras: Any) -> dict[str, np.ndarray]:
    """Outputs of Keras's layers in inference; those of arithmetic on tensors too."""
    nodes = {node.operation.name: node for nodes in model._nodes_by_depth.values() for node in nodes}
    ends = keras.Model(model.inputs, [nodes[name].outputs[0] for name in names])
    weights = [[v.value for v in vs] for vs in (ends.trainable_variables, ends.non_trainable_variables)]
    outputs, _ = jax.jit(lambda w, x: ends.stateless_call(*w, x, training=False))(weights, x)
    return {name: np.asarray(out) for name, out in zip(names, outputs, strict=True)}


DEPTHS = (0, 1, 2) if os.environ.get("CNNJAX_ALL_DEPTHS") else (1,)
"""Which of a family's three depths are trained beside the unstaged run: the others take minutes in all."""
