"""Random parts as a jitted program and inside of a `Trainer`."""

import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from cnnjax import Freeze, Trainer
from cnnjax.data.order import epoch_batches
from cnnjax.freeze import layer_names
from fuzzing.outcome import Arrays, Outcome
from fuzzing.parts import Builder, Part, length

PARTS = 8


def run_plain(seed: int, *, by_op: bool = False, lowered: bool = False) -> Outcome:
    """A part with its gradients by `jax.jit`.

    Args:
        seed: of the program.
        by_op: op by op instead: `jax.disable_jit`.
        lowered: look for oneDNN in the text that is handed to XLA, which is quicker, and not in what XLA has made.
    """
    rng = np.random.default_rng([seed, 1])
    dtype = "bfloat16" if rng.random() < 0.15 else "float32"
    usual = int(rng.choice([7, 8, 8, 8, 9, 10]))
    image = rng.normal(size=(usual, *(length(rng, usual) for _ in range(3)))).astype(np.float32)
    special = dtype == "float32" and rng.random() < 0.06
    value = rng.choice([np.nan, np.inf, -np.inf])
    if special:
        image[tuple(rng.integers(image.shape))] = value
    builder = Builder(rng, image.shape, free=True)
    part = builder.build()
    part.train() if rng.random() < 0.5 else part.eval()
    weights = jnp.asarray(rng.normal(size=builder.shape), jnp.float32)
    graph, params, rest = nnx.split(part, nnx.Param, ...)
    x, params = jax.tree.map(lambda a: jnp.asarray(a, dtype), (image, params))

    def program(params: Any, x: jax.Array, weights: jax.Array) -> tuple[jax.Array, Any]:
        def loss(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = nnx.merge(graph, params, jax.tree.map(lambda v: v, rest))(x)
            return (y.astype(jnp.float32) * weights).sum(), y

        gradients, y = jax.grad(loss, (0, 1), has_aux=True)(params, x)
        return y, gradients

    calls = 0
    if by_op:
        with jax.disable_jit():
            y, (of_params, of_image) = program(params, x, weights)
    else:
        made = jax.jit(program).lower(params, x, weights)
        compiled = made.compile()
        calls = _calls((made if lowered else compiled).as_text() or "")
        y, (of_params, of_image) = compiled(params, x, weights)
    arrays = {"value": y}
    # Where zeros were padded each implementation chooses what multiplies NaN; a bias's gradient in bfloat16 is a sum in
    # bfloat16 unless XLA fuses it.
    if not special and dtype == "float32":
        arrays["gradient image"] = of_image
        arrays |= {f"gradient {_name(p)}": v.get_value() for p, v in nnx.to_flat_state(of_params)}
    text = f"{'x'.join(map(str, image.shape))} {dtype}{f' with {value}' if special else ''}: {part.text}"
    return Outcome(f"a{seed}", text, dtype, _arrays(arrays), calls)


class Net(nnx.Module):
    """Parts side by side, each with a logit of its own.

    Logits are small, so that the gradient of one part hardly depends on what the others give.
    """

    def __init__(self, parts: list[Part]):
        self.parts = nnx.List(parts)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate([part(x) for part in self.parts], 1) * jnp.asarray(SMALL, x.dtype)


SMALL = 2.0**-14


class Values:
    """A source of arrays of any shape and range."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels, self.image_size = images, labels.astype(np.int32), images.shape[1:]
        self.digest = hashlib.sha256(images.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self.images[np.asarray(indices)]


def run_trained(seed: int, *, by_op: bool = False) -> list[Outcome]:
    """Parts in a network under a random freeze: what `predict` gives, stored features, and leaves after a step.

    Args:
        seed: of the network.
        by_op: logits and gradients op by op instead, by Flax and Optax alone.
    """
    rng = np.random.default_rng([seed, 2])
    dtype = "bfloat16" if rng.random() < 0.1 else "float32"
    count = int(rng.choice([7, 8, 8, 8, 9, 10]))
    shape = tuple(length(rng, count) for _ in range(3))
    images = rng.normal(size=(count, *shape)).astype(np.float32)
    labels = rng.integers(0, PARTS, count)
    special = dtype == "float32" and rng.random() < 0.1
    if special:
        images[tuple(rng.integers(images.shape))] = rng.choice([np.nan, np.inf])
    parts = []
    for _ in range(PARTS):
        builder = Builder(rng, images.shape, free=False)
        builder.build()
        builder.logit()
        parts.append(Part(builder.steps))
    net = Net(parts)
    kind = str(rng.choice(["none", "all", "some", "some"]))
    layers = layer_names(net, example=shape)
    names = [name for name in layers if rng.random() < 0.5] or [layers[0]]
    freeze = {"none": Freeze.none(), "all": Freeze.match(*layers[:-1]), "some": Freeze.match(*names)}[kind]
    frozen = freeze.resolve(net, example=shape)
    inputs = (images, labels, net, frozen)
    arrays, calls = _by_op(*inputs) if by_op else _by_trainer(*inputs, dtype)
    outcomes = []
    for k, part in enumerate(parts):
        own = {f"value logit {k}": arrays["logits"][:, k]}
        if not special and dtype == "float32":  # a loss of NaN has no gradient in any part
            own |= {n: v for n, v in arrays.items() if n.startswith(f"gradient parts/{k}/")}
        if k == 0:  # whose stored features they are is not known
            own |= {n: v for n, v in arrays.items() if n.startswith("feature")}
        text = f"{'x'.join(map(str, images.shape))} {dtype}{' with NaN or Inf' * special} freeze {kind}: {part.text}"
        outcomes.append(Outcome(f"b{seed}.{k}", text, dtype, own, calls * (k == 0)))
    return outcomes


def _by_trainer(
    images: np.ndarray, labels: np.ndarray, net: Net, frozen: Any, dtype: Any
) -> tuple[dict[str, Any], int]:
    before = set(map(id, jax.devices()[0].client.live_executables()))
    trainer = Trainer(
        net, frozen, images.shape[1:], batch_size=len(images), optimizer=optax.sgd(1.0 / SMALL), not_finite="keep",
        precision=dtype,
    )  # fmt: skip
    source, state = Values(images, labels), trainer.init()
    start = {path: np.asarray(v) for path, v in state.trainable.items()}
    arrays: dict[str, Any] = {}
    for train in (False, True):
        rows = trainer.rows(source, train=train)
        arrays |= {f"feature{k} train={train}": x for k, x in enumerate(rows.arrays)}
        if train:
            state, _ = trainer.fit(state, rows, epochs=1, seed=0)
            arrays |= {f"gradient {p}": start[p] - np.asarray(v) for p, v in state.trainable.items()}
        else:
            arrays["logits"] = trainer.predict(state, rows)[1] / SMALL
    made = [e for e in jax.devices()[0].client.live_executables() if id(e) not in before]
    calls = sum(_calls(module.to_string()) for e in made for module in e.hlo_modules())
    return {name: _array(x) for name, x in arrays.items()}, calls


def _by_op(images: np.ndarray, labels: np.ndarray, net: Net, frozen: Any) -> tuple[dict[str, Any], int]:
    def run(at: Any) -> jax.Array:
        for path, layer in nnx.iter_graph(net):
            if isinstance(layer, nnx.BatchNorm):
                layer.use_running_average = at is None or frozen.is_frozen("/".join(map(str, path)))
        return at

    with jax.disable_jit():
        run(None)
        logits = net(jnp.asarray(images))
        order = epoch_batches(len(images), len(images), 0, 0)[0][0]
        run(order)
        graph, params, rest = nnx.split(net, nnx.Param, ...)

        def loss(params: Any) -> jax.Array:
            out = nnx.merge(graph, params, jax.tree.map(lambda v: v, rest))(jnp.asarray(images[order]))
            return optax.softmax_cross_entropy_with_integer_labels(out, jnp.asarray(labels[order])).mean()

        gradients = nnx.to_flat_state(jax.grad(loss)(params))
    arrays = {f"gradient {_name(p)}": v.get_value() / SMALL for p, v in gradients if not frozen.is_frozen(_name(p))}
    return {name: _array(x) for name, x in {"logits": logits / SMALL, **arrays}.items()}, 0


def _calls(text: str) -> int:
    return len(re.findall(r"(call_target_name = |custom_call_target=|@)\W*__onednn", text))


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


def _array(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float32)


def _arrays(of: dict[str, Any]) -> Arrays:
    return {name: _array(x) for name, x in of.items()}
