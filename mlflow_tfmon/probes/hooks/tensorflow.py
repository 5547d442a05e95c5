"""Hooks into TensorFlow (2.16 to 2.21)."""

from __future__ import annotations

from functools import partial

from mlflow_tfmon.probes import by_hand, graph, inputs, replicas, tape
from mlflow_tfmon.probes.hooks import Hook
from mlflow_tfmon.probes.step import OnRing

_NO_INPUT = "the wait for input is not recorded"


def hooks(on_ring: OnRing) -> list[Hook]:
    """The table; `on_ring` is told of each new ring and what stands for its optimizer."""
    takes = partial(by_hand.takes, on_ring=on_ring)
    return [
        Hook(
            "tensorflow.GradientTape.gradient",
            "the loss of each step is not recorded",
            partial(tape.watch_gradient, takes=takes),
        ),
        Hook(
            "tensorflow.compat.v1.train.Optimizer.apply_gradients",
            "nothing is said of trainings with TensorFlow 1's optimizers",
            tape.watch_other_optimizer,
        ),
        Hook(
            "tensorflow.python.data.ops.iterator_ops.OwnedIterator._next_internal",
            _NO_INPUT,
            inputs.watch_next,
        ),
        Hook(
            "tensorflow.python.distribute.input_lib.DistributedIteratorBase.get_next",
            _NO_INPUT,
            inputs.watch_next,
        ),
        Hook(
            "tensorflow.python.distribute.mirrored_run._MirroredReplicaThread.__init__",
            "steps of a loop on several replicas may not be recorded",
            replicas.watch_thread,
        ),
        Hook(
            "tensorflow.python.eager.polymorphic_function.atomic_function.AtomicFunction.__init__",
            "memory is not given back after a training",
            graph.watch_function,
        ),
        Hook(
            "tensorflow.python.framework.auto_control_deps.AutomaticControlDependencies.__exit__",
            "the loss of each step may not be recorded",
            partial(tape.watch_end, takes=takes),
        ),
    ]
