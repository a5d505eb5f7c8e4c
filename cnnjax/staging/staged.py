"""A program cut at its frontier."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.files.digests import digest
from cnnjax.staging.cut import after_large, fingerprints, made_of, needed, row_bytes
from cnnjax.staging.fold import folded
from cnnjax.staging.program import Program
from cnnjax.staging.times import FIXED, LATE, Known, Time
from cnnjax.staging.trace import Literal, inner_jaxprs, open_jaxpr, part

_Run = Callable[[dict[Any, Any]], list[jax.Array]]

# A value is large if this many images' shares of it fill the cache that is made room for.
_TOGETHER = 16


@dataclass(frozen=True)
class Feature:
    """One value of the frontier that is stored for each image.

    Attributes:
        key: digest of the expression that makes it: the operations, and the weights they read.
        shape: its shape for one image.
        dtype: its type.
    """

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes an image."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Staged:
    """`fn(fixed, images, late)` cut by binding time.

    `constants` is run once, `maker` once an image, `late` in every step:

        late(constants(fixed), maker(...)(fixed, images), x) == fn(fixed, images, x)

    Args:
        fn: a pure function of a tree of frozen arrays, a batch of images `[N, ...]`, and a tree of what
            changes from step to step (trainable weights, random keys).
        fixed: the frozen arrays, by value: their content is part of the features' keys.
        image: shape and dtype of one image.
        late: the late arguments, as arrays or abstract shapes; a function from a batch size to them, where some have a
            row for each image.
        batches: batch sizes it will be run at, first of all one that `fn` must take. The program is traced at each:
            what is another operation at one of them is left to the step. If it cannot be followed through all of them
            (it has other equations, or raises at a size that is not the first), nothing is cut, and what is stored is
            the images. None given: any two sizes that `fn` takes are compared.

    Attributes:
        features: what is stored for each image.
        times: what is known of each variable of the program.
        program: the program and its cut.

    Example:
        >>> w = {"frozen": jnp.ones((3, 2))}
        >>> f = lambda fixed, x, scale: (x @ fixed["frozen"]).reshape(len(x), 2) * scale
        >>> staged = Staged(f, w, jax.ShapeDtypeStruct((3,), "float32"), jnp.float32(2))
        >>> [feature.shape for feature in staged.features]
        [(2,)]
        >>> rows = staged.maker(staged.features, batch=4)(w, jnp.ones((4, 3)))
        >>> staged.late(staged.constants(w), rows, jnp.float32(2)).tolist()[0]
        [6.0, 6.0]
    """

    def __init__(
        self, fn: Callable[..., Any], fixed: Any, image: jax.ShapeDtypeStruct, late: Any, batches: Sequence[int] = ()
    ):
        self.program = Program(fn, fixed, image, late, batches)
        self.image, self.times = image, self.program.times
        jaxpr, consts, _ = self.program.first
        leaves = dict(zip(jaxpr.constvars, map(digest, consts), strict=True))
        leaves |= dict(zip(jaxpr.invars, [*map(digest, jax.tree.leaves(fixed)), "images"], strict=False))
        self._keys = fingerprints(jaxpr, self.program.cut, leaves, self.program.said)
        self.features = tuple(self._feature(v) for v in self.program.stored)

    def _feature(self, var: Any) -> Feature:
        return Feature(self._keys[var], self.program.shape(var), np.dtype(var.aval.dtype))

    @cached_property
    def intermediates(self) -> tuple[Feature, ...]:
        """Every value on the way to the frontier: if one is stored, the pass can start from it."""
        return tuple(self._feature(v) for v in self._keys if self.times[v].time is Time.IMAGE)

    @cached_property
    def of_images(self) -> Any:
        """Which outputs are made from images, as the tree of the output; True where that is not known."""
        jaxpr, _, tree = self.program.first
        image = jaxpr.invars[self.program.fixed_count]
        return jax.tree.unflatten(tree, [image in needed(jaxpr, [v], ())[1] for v in jaxpr.outvars])

    @property
    def cut(self) -> tuple[str, ...]:
        """Keys of all that is handed over the cut, in order: programs with the same share constants and features."""
        return tuple(self._keys[v] for v in self.program.cut)

    @property
    def bytes_per_image(self) -> int:
        """Bytes that the store keeps for one image."""
        return sum(feature.nbytes for feature in self.features)

    @property
    def stores_images_only(self) -> bool:
        """Whether the frontier lies at the input: no layer can be computed beforehand."""
        return all(v in self.program.first[0].invars for v in self.program.stored)

    @cached_property
    def blocked(self) -> tuple[str, ...]:
        """Operations on images or frozen weights alone that had to be left to the step.

        They mix the images of a batch, or are not known to keep them apart. Empty for common networks.
        """
        found = []
        for eqn in self.program.first[0].eqns:
            ins = [self.times[a].time for a in eqn.invars if not isinstance(a, Literal)]
            late = any(self.times[v].time is Time.LATE for v in eqn.outvars)
            if late and ins and Time.LATE not in ins:
                found.append(eqn.primitive.name)
        return tuple(found)

    @cached_property
    def late_primitives(self) -> frozenset[str]:
        """Names of all operations that run in every step, those inside calls included."""
        jaxpr = self.program.first[0]
        found: set[str] = set()

        def visit(eqns: Sequence[Any]) -> None:
            for eqn in eqns:
                found.add(eqn.primitive.name)
                for body in inner_jaxprs(eqn.params):
                    visit(open_jaxpr(body).eqns)

        visit([jaxpr.eqns[k] for k in self.program.late_eqns])
        return frozenset(found)

    def constants(self, fixed: Any) -> list[jax.Array]:
        """What the step reads that depends on frozen weights alone. Compute it once a run."""
        jaxpr, consts, _ = self.program.first
        leaves = jax.tree.leaves(fixed)
        if not self.program.opened:
            return list(map(jnp.asarray, leaves))
        wanted = [v for v in self.program.cut if self.times[v].time is Time.FIXED]
        given = dict(zip([*jaxpr.constvars, *jaxpr.invars[: len(leaves)]], [*consts, *leaves], strict=True))
        eqns, ins = needed(jaxpr, wanted, ())
        run = part(jaxpr, ins, wanted, (jaxpr.eqns[k] for k in eqns))
        return list(jax.jit(run)(*(given[v] for v in ins)))

    def maker(self, wanted: Sequence[Feature], batch: int, stored: Sequence[Feature] = (), cache: int = 0) -> "Maker":
        """The program that makes features, from images or from features that are stored already.

        Args:
            wanted: features to make, of this program's `features`.
            batch: its batch size.
            stored: features of any program that are at hand; those on the way to `wanted` are used.
            cache: bytes of a cache in which large values should stay: the equations that make them are run over a
                few images at a time. 0 runs all of them over the whole batch.

        Raises:
            ProgramDiffers: the model computes something else at this batch size, or for those few images.
        """
        first, consts, _ = self.program.first
        keys = {key: var for var, key in self._keys.items() if self.times[var].time is Time.IMAGE}
        goals = [keys[f.key] for f in wanted]
        at_hand = {keys[f.key]: f for f in stored if f.key in keys}
        eqns, ins = needed(first, goals, at_hand)
        image = first.invars[self.program.fixed_count]
        rows = [v for v in ins if v in at_hand]
        constants = dict(zip(first.constvars, consts, strict=True))
        run, few, largest = self._pass(batch, goals, ins, eqns, cache)

        def make(fixed: Any, images: Any, *features: jax.Array) -> tuple[jax.Array, ...]:
            leaves = dict(zip(first.invars[: self.program.fixed_count], jax.tree.leaves(fixed), strict=True))
            return tuple(run({**constants, **leaves, image: images, **dict(zip(rows, features, strict=True))}))

        return Maker(make, tuple(at_hand[v] for v in rows), image in ins, len(eqns), few, largest)

    def _pass(self, batch: int, goals: list[Any], ins: list[Any], eqns: list[int], cache: int) -> tuple[_Run, int, int]:
        """What makes `goals`, how many images are together while values are large, and the largest one after that."""
        whole = self._run(batch, goals, ins)
        first = self.program.first[0]
        handed, later = after_large(first, eqns, goals, self.times, cache // _TOGETHER)
        largest = self._largest(needed(first, handed, ins)[0])
        # A lone image is avoided: programs often are others for it. Half the cache: each value is made from another.
        parts = [n for n in range(2, batch) if batch % n == 0]
        few = max((n for n in parts if 2 * n * largest <= cache), default=min(parts, default=batch))
        if not (cache and handed) or few == batch:
            return whole, batch, self._largest(eqns)
        # What frozen weights alone decide is computed once, not for every part of the batch.
        alone = [k for k in eqns if all(self.times[v] == FIXED for v in first.eqns[k].outvars)]
        once = [v for k in alone for v in first.eqns[k].outvars]
        prepare, large = self._run(batch, once, ins), self._run(few, handed, [*ins, *once])
        rest = self._run(batch, goals, [*ins, *once, *handed])
        rows = [v for v in ins if self.times[v].time is Time.IMAGE]

        def run(values: dict[Any, Any]) -> list[jax.Array]:
            values = values | dict(zip(once, prepare(values), strict=True))

            def some(images: list[jax.Array]) -> list[jax.Array]:
                return large(values | dict(zip(rows, images, strict=True)))

            # In a loop XLA's convolutions of so few images are as fast as of all outside it (ResNet-50 at 160x160 45
            # and 43 images a second), though the lecture's CNN, whose maps are large and layers few, loses a tenth.
            parts = [values[v].reshape(batch // few, few, *values[v].shape[1:]) for v in rows]
            joined = [x.reshape(batch, *x.shape[2:]) for x in jax.lax.map(some, parts)]
            return rest(values | dict(zip(handed, joined, strict=True)))

        return run, few, later

    def _largest(self, eqns: Iterable[int]) -> int:
        """Bytes of an image's share of the largest value that equations make."""
        made = [v for k in eqns for v in self.program.first[0].eqns[k].outvars]
        return max((row_bytes(v, self.times[v]) for v in made if self.times[v].time is Time.IMAGE), default=0)

    def _run(self, batch: int, wanted: Sequence[Any], given: Iterable[Any]) -> _Run:
        """What makes values from other ones, both by their variable in the canonical trace, images as `[N, ...]`."""
        if not self.program.opened:  # nothing is made, so that no size need be one that the model takes
            return lambda values: [jnp.asarray(values[v], v.aval.dtype) for v in wanted]
        jaxpr, _, _, own = self.program.at(batch)
        eqns, ins = needed(self.program.first[0], wanted, given)
        fixed = {own[v] for v, known in self.times.items() if known == FIXED}
        steps = [jaxpr.eqns[k] for k in eqns]
        run = folded(jaxpr, [own[v] for v in ins], [own[v] for v in wanted], steps, fixed)

        def value(v: Any, x: Any) -> Any:
            is_rows = self.times[v].time is Time.IMAGE
            return _from_rows(jnp.asarray(x, v.aval.dtype), self.times[v]) if is_rows else x

        def rows(v: Any, x: Any) -> Any:
            return _to_rows(x, self.times[v]) if self.times[v].time is Time.IMAGE else x

        return lambda values: list(map(rows, wanted, run(*(value(v, values[v]) for v in ins))))

    def late(self, constants: Sequence[Any], features: Sequence[Any], late: Any, *, fold: bool = False) -> Any:
        """The part of the program that runs in every step.

        Args:
            constants: from `constants`.
            features: one array `[N, ...]` for each of `features`, in order.
            late: the late arguments.
            fold: let factors and terms that hold for every image, trained ones too, go into the kernel before them
                (see `folded`): where no gradient is taken.
        """
        if not features:
            raise ValueError("the program reads no image: there is nothing to train on")
        first = self.program.first[0]
        if not self.program.opened:
            jaxpr, consts, tree = self.program.trace(features[0].shape[0])
            images = jnp.asarray(features[0], self.image.dtype)
            leaves = [*constants, images, *jax.tree.leaves(late)]
            run = part(jaxpr, [*jaxpr.constvars, *jaxpr.invars], jaxpr.outvars, jaxpr.eqns)
            return jax.tree.unflatten(tree, run(*consts, *leaves))
        jaxpr, consts, tree, own = self.program.at(features[0].shape[0])
        free = first.invars[self.program.fixed_count + 1 :]
        fixed = [v for v in self.program.cut if self.times[v].time is Time.FIXED]
        outs = list(jaxpr.outvars)
        # Constants that change with the batch size are this size's own.
        late_consts = {own[v]: c for v, c in zip(first.constvars, consts, strict=True) if self.times[v] == LATE}
        ins = [own[v] for v in (*fixed, *self.program.stored, *free)] + list(late_consts)
        eqns = [jaxpr.eqns[k] for k in self.program.late_eqns]
        if fold:
            given = {own[v] for v in (*fixed, *free)} | set(late_consts)
            run = folded(jaxpr, ins, outs, eqns, made_of(given, eqns))
        else:
            run = part(jaxpr, ins, outs, eqns)
        rows = [_from_rows(x, self.times[v]) for x, v in zip(features, self.program.stored, strict=True)]
        return jax.tree.unflatten(tree, run(*constants, *rows, *jax.tree.leaves(late), *late_consts.values()))


@dataclass(frozen=True)
class Maker:
    """A program that makes features for a batch: `maker(fixed, images, *stored)`.

    Attributes:
        reads: the stored features it starts from, in the order of its arguments.
        reads_images: whether it needs the images (they may be None otherwise).
        equations: how many equations it runs; 0 if what is wanted is there already.
        few: how many images at a time go through the part of it that makes large values; the batch where all do.
        largest: bytes of an image's share of the largest value that is made for the whole batch.
    """

    run: Callable[..., tuple[jax.Array, ...]]
    reads: tuple[Feature, ...]
    reads_images: bool
    equations: int
    few: int
    largest: int

    def __call__(self, fixed: Any, images: Any, *stored: jax.Array) -> tuple[jax.Array, ...]:
        return self.run(fixed, images, *stored)


def _to_rows(value: jax.Array, known: Known) -> jax.Array:
    """A value of the program as `[N, ...]`, one row an image."""
    rows = jnp.moveaxis(value, known.axis or 0, 0)
    return rows if known.repeat == 1 else rows.reshape(-1, known.repeat, *rows.shape[1:])


def _from_rows(rows: jax.Array, known: Known) -> jax.Array:
    """`[N, ...]` as the value that the program had."""
    value = rows if known.repeat == 1 else rows.reshape(-1, *rows.shape[2:])
    return jnp.moveaxis(value, 0, known.axis or 0)
