"""Hooks into TensorFlow (2.16 to 2.21)."""

from __future__ import annotations

from mlflow_tfmon.probes import graph, inputs, replicas, tape
from mlflow_tfmon.probes.hooks import Hook

_NO_INPUT = "the wait for input is not recorded"

HOOKS = [
    Hook("tensorflow.GradientTape.gradient", "the loss of each step is not recorded", tape.watch_gradient),
    Hook(
        "tensorflow.compat.v1.train.Optimizer.apply_gradients",
        "nothing is said of trainings with TensorFlow 1's optimizers",
        tape.watch_other_optimizer,
    ),
    Hook(
        "tensorflow.python.data.ops.iterator_ops.OwnedIterator._next_internal", _NO_INPUT, inputs.watch_next
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
        tape.watch_end,
    ),
]
