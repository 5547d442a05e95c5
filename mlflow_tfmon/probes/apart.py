"""Reading a tensor of the user's graph without changing, by a bit, what is computed from it.

TensorFlow regroups products and sums: `(gradient * scale) * rate` becomes `(rate * scale) * gradient` where nothing
but the outer product needs the inner one (Grappler's arithmetic optimizer, TF 2.16 to 2.21). Whoever reads the inner
one prevents that, and the update differs in its last bit. So a copy is read, which is computed from what the inner one
is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

_REGROUPED: dict[str, Callable[..., tf.Tensor]] = {
    "Mul": lambda x, y: tf.raw_ops.Mul(x=x, y=y),
    "RealDiv": lambda x, y: tf.raw_ops.RealDiv(x=x, y=y),
    "Add": lambda x, y: tf.raw_ops.Add(x=x, y=y),
    "AddV2": lambda x, y: tf.raw_ops.AddV2(x=x, y=y),
    "Sub": lambda x, y: tf.raw_ops.Sub(x=x, y=y),
    "AddN": lambda *inputs: tf.raw_ops.AddN(inputs=inputs),
}
_SAME = ("Identity", "IdentityN")
_MARK = "_mlflow_tfmon_copy"  # without it, TensorFlow would see that both are the same, and compute but one


def apart(value: Any) -> Any:
    """What is to be read in place of a tensor, or of a sparse gradient: itself, or a copy.

    To be called when what the user's graph makes of it is there, before anything of ours is.
    """
    return tf.nest.map_structure(_apart, value, expand_composites=True)


def _apart(tensor: Any) -> Any:
    if not tf.is_symbolic_tensor(tensor) or tensor.graph is not tf.compat.v1.get_default_graph():
        return tensor
    op = tensor.op
    if op.type in _SAME:  # which TensorFlow takes out
        return _apart(op.inputs[tensor.value_index])
    if op.type not in _REGROUPED or len(_readers(tensor)) > 1:  # for which it is kept as it is
        return tensor
    with tf.device(op.device):
        copy = _REGROUPED[op.type](*map(_apart, op.inputs))
    copy.op._set_attr(_MARK, tf.compat.v1.AttrValue(b=True))
    return copy


def _readers(tensor: tf.Tensor) -> set[tf.Operation]:
    found = set()
    for op in tensor.consumers():
        if op.type in _SAME:
            for given, same in zip(op.inputs, op.outputs, strict=True):
                found |= _readers(same) if given is tensor else set()
        else:
            found.add(op)
    return found
