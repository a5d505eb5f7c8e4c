"""The model of a saved classifier, built as its config says and filled with its weights."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cnnjax.classifier import folder
from cnnjax.classifier.config import Config
from cnnjax.data.listing import some
from cnnjax.files.importing import is_path, named
from cnnjax.functional import Functional, Leaves, functionalize
from cnnjax.models import Backbone
from cnnjax.models.own import OwnBackbone, OwnHead
from cnnjax.train.tasks import Classification, Task

_FLOATS = (np.dtype(np.float32), np.dtype(jnp.bfloat16), np.dtype(np.float16))


def read_model(
    path: str | os.PathLike[str], backbone: str | OwnBackbone | None, head: str | OwnHead | None, task: Task | None,
    code: tuple[str, ...],
) -> tuple[Config, Functional, Leaves, dict[str, Any]]:  # fmt: skip
    """A saved classifier's config, programs, leaves, and what was measured; see `ImageClassifier.load`.

    Args:
        path: The folder.
        backbone: Code of the user's in place of that which the folder names.
        head: The same of a head.
        task: In place of one that was made of functions.
        code: Import paths of code that the folder names and that may be run.

    Raises:
        ValueError: The folder needs code that is not named, or code is named that it does not need.
        FileNotFoundError: There is no such folder.
        SavedClassifierError: A file is missing, damaged, of a newer format, or does not fit the others.
    """
    given = {name: own for name, own in (("backbone", backbone), ("head", head)) if own is not None}
    config, arrays, types, measured = folder.read(path, task, code, given)
    config = _with_head(path, _with_code(path, config, backbone), head)
    functional, hint = _expected(path, config, arrays)
    abstract = {p: variable.get_value() for p, variable in _named(functional)}
    expected = {
        p: jax.ShapeDtypeStruct(x.shape, np.dtype(types.get(p, x.dtype)))
        for p, x in _without_random(abstract, functional).items()
    }
    if unknown := sorted(set(types) - set(expected)):
        hint += f": it names types of {some(unknown)}, which the model has not"
    folder.check_leaves(path, arrays, expected, hint)
    return config, functional, {p: jnp.asarray(arrays[p]) for p in expected}, measured


def check_new_leaves(given: Leaves, own: Leaves) -> None:
    """Refuse leaves that are not a model's.

    Raises:
        ValueError: A leaf is unknown, of another shape, or no float; all are named.
    """
    faults = [f"\n  {p}: no such leaf in the model" for p in given if p not in own]
    for path, value in given.items():
        if path in own and (value.shape != own[path].shape or value.dtype not in _FLOATS):
            wanted = f"{own[path].dtype}{list(own[path].shape)}"
            faults.append(f"\n  {path}: expected {wanted}, found {value.dtype}{list(value.shape)}")
    if faults:
        raise ValueError("leaves that do not fit the classifier:" + "".join(faults))


def _with_code(path: Any, config: Config, backbone: str | OwnBackbone | None) -> Config:
    """The config of a saved classifier, with the code that the caller has named."""
    if backbone is None or backbone == config.backbone:
        return config
    name = backbone if isinstance(backbone, str) else named(backbone)
    if not config.own or (isinstance(backbone, str) and not is_path(backbone)):
        raise ValueError(f"the backbone of {path} is {config.backbone}, and cannot be read as {name}")
    if isinstance(backbone, nnx.Module):  # built already, whatever options it was built with
        return replace(config, backbone=name, code=backbone, options={})
    return replace(config, backbone=name, code=None if isinstance(backbone, str) else backbone)


def _with_head(path: Any, config: Config, head: "str | OwnHead | None") -> Config:
    """The same with the code of a head."""
    if head is None or head == config.head:
        return config
    name = head if isinstance(head, str) else named(head)
    if not is_path(config.head) or (isinstance(head, str) and not is_path(head)):
        raise ValueError(f"the head of {path} is {config.head}, and cannot be read as {name}")
    return replace(config, head=name, head_code=None if isinstance(head, str) else head)


def _named(functional: Functional) -> list[tuple[str, Any]]:
    return list(zip(functional.kinds, (variable for _, variable in functional.variables), strict=True))


def _without_random(leaves: Mapping[str, Any], functional: Functional) -> Leaves:
    random = set(functional.random())
    return {path: value for path, value in leaves.items() if path not in random}


def _expected(path: Any, config: Config, arrays: Mapping[str, np.ndarray]) -> tuple[Functional, str]:
    """The programs of the model that a config describes, and what its outputs say of the file."""
    try:
        model = nnx.eval_shape(config.build)
    except (ValueError, LookupError) as error:
        raise folder.SavedClassifierError(f"{os.path.join(path, folder.CONFIG)} describes no model: {error}") from error
    functional = functionalize(model)
    where, chain = ("backbone", model.backbone) if model.head is None else ("head", model.head)
    if not isinstance(chain, Backbone):  # a head of the user's: its leaves are compared one by one
        return functional, ""
    biases = [f"{where}/{name}/bias" for name in reversed(chain.layer_names)]
    last = next(bias for bias in biases if bias in functional.kinds)
    wanted = dict(_named(functional))[last].get_value().shape
    if last not in arrays or arrays[last].shape == wanted:
        return functional, ""
    have, want = arrays[last].size, wanted[0]
    what = "class names" if isinstance(config.task, Classification) else "names"
    return functional, f": {len(config.classes)} {what} need {want} logits, the weights give {have}"
