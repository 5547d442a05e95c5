"""Computing over large tensors piece by piece, so that what is computed on the way takes the memory of a piece.

What is measured at a deep step takes several tensors of a variable's size in between; those of all variables together
would take several times the model's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

PIECE = 2**18  # elements


def is_small(shape: tf.TensorShape) -> bool:
    """Whether a tensor is known to be no larger than a piece."""
    size = shape.num_elements()
    return size is not None and size <= PIECE


def over_pieces(
    compute: Callable[..., tf.Tensor],
    join: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    tensors: Sequence[tf.Tensor],
    small: bool = False,
) -> tf.Tensor:
    """What is computed of tensors, joined over pieces of them.

    Args:
        compute: of pieces of the tensors, flat and of equal size.
        join: of what it gave of two pieces.
        tensors: of equal size.
        small: whether they are known to be no larger than a piece, although their shapes are not: a loop that is not
            needed takes as long to trace as all else.

    Example:
        >>> over_pieces(tf.reduce_sum, tf.add, [tensor])
    """
    flat = [tf.reshape(tensor, [-1]) for tensor in tensors]
    size = flat[0].shape[0]
    if small or (size is not None and size <= PIECE):
        return compute(*flat)
    whole = tf.size(flat[0]) if size is None else size

    def piece(begin: tf.Tensor | int, length: tf.Tensor | int) -> tf.Tensor:
        return compute(*(tf.slice(one, [begin], [length]) for one in flat))

    # What is left over comes first: XLA knows the size of a slice before it runs.
    rest = tf.minimum((whole - 1) % PIECE + 1, whole) if size is None else (whole - 1) % PIECE + 1

    def further(begin: tf.Tensor, sofar: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return begin + PIECE, join(sofar, piece(begin, PIECE))

    _, result = tf.while_loop(
        lambda begin, _: begin < whole,
        further,
        [tf.convert_to_tensor(rest), piece(0, rest)],
        parallel_iterations=1,
    )
    return result
