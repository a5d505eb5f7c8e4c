"""The train step and the loop over it; and the parts of them, for a loop of your own.

A `Trainer` has the parts of its step for you too: `batches` gives what each step takes, `objective` makes of a batch
its mean loss as a pure function of the trainable parameters, `apply_gradients` moves them. Freezing, stored features,
augmentation, dropout, BatchNorm, the task and the weights of examples are inside. So a loop of your own is:

>>> import jax, jax.numpy as jnp, numpy as np, optax
>>> from flax import nnx
>>> from cnnjax import Freeze, Task, Trainer
>>> from cnnjax.data import InMemory
>>> def network(widths, seed):
...     rngs = nnx.Rngs(seed)
...     return nnx.Sequential(nnx.Conv(3, widths, (3, 3), rngs=rngs), nnx.relu, lambda x: x.mean((1, 2)) / 255,
...                           nnx.Linear(widths, 3, rngs=rngs))
>>> images = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), np.uint8)
>>> data = InMemory(images, np.arange(12) % 3, ("a", "b", "c"))
>>> model = network(4, 0)
>>> trainer = Trainer(model, Freeze.depth(1).resolve(model), (8, 8), batch_size=4, optimizer="sgd")
>>> @jax.jit
... def step(state, batch):
...     gradients, result = jax.grad(trainer.objective(state, batch), has_aux=True)(state.trainable)
...     return trainer.apply_gradients(state, gradients, result)
>>> rows, state = trainer.rows(data), trainer.init()  # the frozen convolution is run here, once
>>> for epoch in range(2):
...     for batch in trainer.batches(rows, epoch=epoch):
...         state, metrics = step(state, batch)
>>> int(state.step), sorted(metrics.summary())
(6, ['accuracy', 'loss'])

**Two gradients a step.** Sharpness-aware minimisation (Foret et al. 2021, equations 2 and 3) takes the gradient a
little uphill. As `gradient_fn` of a `Trainer` or `Fitter` it is part of the compiled steps, and of those of `Replicas`:

>>> def sam(objective, state, radius=0.05):
...     gradients, result = jax.grad(objective, has_aux=True)(state.trainable)
...     scale = radius / (jnp.sqrt(sum(jnp.vdot(g, g) for g in gradients.values())) + 1e-12)
...     uphill = jax.tree.map(lambda w, g: w + scale * g, state.trainable, gradients)
...     return jax.grad(objective, has_aux=True)(uphill)[0], result
>>> sharp = Trainer(model, Freeze.depth(1).resolve(model), (8, 8), batch_size=4, optimizer="sgd", gradient_fn=sam)
>>> state, log = sharp.fit(sharp.init(), sharp.rows(data), epochs=2)

**Distillation** (Hinton et al. 2015). Student and teacher are one module with a pair of outputs, and the teacher is
frozen: its logits are known before training starts, so they are computed once and cached. No step runs the teacher.
(Training switches dropout on in all of a module: of a teacher with dropout each step runs what comes after it.)

>>> class Distilled(nnx.Module):
...     def __init__(self, student, teacher):
...         self.student, self.teacher = student, teacher
...     def __call__(self, images):
...         return self.student(images), self.teacher(images)
>>> def distillation(outputs, labels, temperature=4.0):
...     student, teacher = (logits / temperature for logits in outputs)
...     soft = optax.losses.softmax_cross_entropy(student, jax.nn.softmax(teacher)) * temperature**2
...     return soft + optax.losses.softmax_cross_entropy_with_integer_labels(outputs[0], labels)
>>> pair = Distilled(network(2, 1), network(32, 2))
>>> frozen = Freeze.all().resolve(pair, "teacher")
>>> trainer = Trainer(pair, frozen, (8, 8), batch_size=4, optimizer="sgd", task=Task(distillation))
>>> [feature.shape for feature in trainer.staged.features]  # the image, and the teacher's three logits
[(8, 8, 3), (3,)]
>>> state, log = trainer.fit(trainer.init(), trainer.rows(data), epochs=2)
>>> sorted({path.split("/")[0] for path in state.trainable})
['student']

**Two heads.** Outputs and targets are any trees of arrays; a `Task` of your own says what is minimised:

>>> class TwoHeads(nnx.Module):
...     def __init__(self):
...         self.body = network(4, 3)
...         self.kind, self.age = nnx.Linear(3, 3, rngs=nnx.Rngs(4)), nnx.Linear(3, 1, rngs=nnx.Rngs(5))
...     def __call__(self, images):
...         x = self.body(images)
...         return {"kind": self.kind(x), "age": self.age(x)[:, 0]}
>>> def both(outputs, targets):
...     kind = optax.losses.softmax_cross_entropy_with_integer_labels(outputs["kind"], targets["kind"])
...     return kind + 0.1 * (outputs["age"] - targets["age"]) ** 2
>>> heads, known = TwoHeads(), {"kind": np.arange(12) % 3, "age": np.linspace(0, 1, 12)}
>>> trainer = Trainer(heads, Freeze.none().resolve(heads), (8, 8), batch_size=4, task=Task(both))
>>> state, log = trainer.fit(trainer.init(), trainer.rows(InMemory(images, targets=known)), epochs=2)
>>> trainer.predict(state, trainer.rows(InMemory(images, targets=known), train=False))[1]["age"].shape
(12,)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnjax.train.callbacks import Callback
    from cnnjax.train.dataset import FeatureDataset
    from cnnjax.train.loop import NotFinite
    from cnnjax.train.replicas import Replicas
    from cnnjax.train.state import State
    from cnnjax.train.step import BatchResult, GradientFn, Objective, TrainingBatch, plain_gradients
    from cnnjax.train.task import Labelled, Metrics, Task
    from cnnjax.train.tasks import Classification, MultiLabel, Regression
    from cnnjax.train.trainer import Trainer

__all__ = [
    "BatchResult",
    "Callback",
    "Classification",
    "FeatureDataset",
    "GradientFn",
    "Labelled",
    "Metrics",
    "MultiLabel",
    "NotFinite",
    "Objective",
    "Regression",
    "Replicas",
    "State",
    "Task",
    "Trainer",
    "TrainingBatch",
    "plain_gradients",
]  # fmt: skip

# Imported when first asked for: what the rest of the library takes from `cnnjax.ops.counting` is below all of these.
_MODULES = {
    "callbacks": ("Callback",),
    "dataset": ("FeatureDataset",),
    "loop": ("NotFinite",),
    "replicas": ("Replicas",),
    "state": ("State",),
    "step": ("BatchResult", "GradientFn", "Objective", "TrainingBatch", "plain_gradients"),
    "task": ("Labelled", "Metrics", "Task"),
    "tasks": ("Classification", "MultiLabel", "Regression"),
    "trainer": ("Trainer",),
}
_LATER = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
