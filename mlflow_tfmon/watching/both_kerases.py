"""BothKerases: the base of callbacks that Keras 3 and Keras 2 can call."""

from __future__ import annotations

import keras


class BothKerases(keras.callbacks.Callback):
    """Callback for the `fit` of Keras 3 and Keras 2, with the methods that either asks a callback for."""

    _supports_tf_logs = True  # so that ours does not change what the other callbacks get

    def _implements(self, mode: str) -> bool:
        methods = (f"on_{mode}_batch_begin", f"on_{mode}_batch_end")
        return any(
            getattr(getattr(self, m), "__func__", m) is not getattr(keras.callbacks.Callback, m)
            for m in methods
        )

    def _implements_train_batch_hooks(self) -> bool:
        return self._implements("train")

    def _implements_test_batch_hooks(self) -> bool:
        return self._implements("test")

    def _implements_predict_batch_hooks(self) -> bool:
        return self._implements("predict")
