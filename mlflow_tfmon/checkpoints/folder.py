"""Conversion of a snapshot to a folder that MLflow can load, off the training thread."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow.models import Model

from mlflow_tfmon import kerases
from mlflow_tfmon.checkpoints.snapshot import ChangedError, Snapshot
from mlflow_tfmon.checkpoints.state import State
from mlflow_tfmon.errors import logger
from mlflow_tfmon.facts import parts, saving, specs
from mlflow_tfmon.facts.arguments import FitArguments
from mlflow_tfmon.noise import no_warnings
from mlflow_tfmon.probes.alone import alone
from mlflow_tfmon.settings import Settings

WEIGHTS = "model.weights.h5"


class Writer:
    """Writer of snapshots of one model, each to its own folder.

    Everything that MLflow needs around a model is made once and copied: per checkpoint only the model itself is saved.
    A model that Keras could not load again is saved as weights only (for `model.load_weights`), which is logged once.

    Args:
        folder: where to keep the shared files.
        settings: whether weights only, with signature, with example.
        arguments: the call of fit, or None.
        once: context manager for work that is done only once.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        arguments: FitArguments | None,
        once: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._form = folder
        self._settings = settings
        self._arguments = arguments
        self._once = once
        self._save: Callable[[Any, Path], None] | None = None
        self._known: tuple[int, ...] = ()
        self.whole = not settings.checkpoint_save_weights_only

    def write(self, snapshot: Snapshot, folder: Path, state: State | None = None) -> None:
        """Writes a snapshot; the folder appears only once it is complete.

        Args:
            snapshot: what to write.
            folder: where; must not exist yet.
            state: what resuming needs besides the model.

        Raises:
            ChangedError: the model has changed since the snapshot.
            OSError: it could not be written (disk full).
        """
        try:
            self._write(snapshot, folder, state)
        except (ChangedError, OSError):
            raise
        except Exception as error:
            if not self.whole:
                raise
            self._fall_back(snapshot.model, f"Keras cannot save it ({type(error).__name__}: {error})")
            self._write(snapshot, folder, state)

    def _write(self, snapshot: Snapshot, folder: Path, state: State | None) -> None:
        draft = folder.with_name(folder.name + ".draft")
        model = snapshot.model
        try:
            variables = tuple(id(variable) for variable in snapshot.variables)
            if self._save is None or variables != self._known:
                with self._once(), alone():
                    self._save = self._make_form(model)
                self._known = variables
            shutil.copytree(self._form, draft)
            with no_warnings(), alone(), snapshot.in_force():
                self._save(model, draft)
            if state is not None:
                state.write(draft)
            os.replace(draft, folder)
        finally:
            with contextlib.suppress(OSError):
                shutil.rmtree(draft, ignore_errors=True)

    def _make_form(self, model: Any) -> Callable[[Any, Path], None]:
        shutil.rmtree(self._form, ignore_errors=True)
        if self.whole:
            own, compilation = parts.custom_parts(model)
            if own.unknown:
                names = ", ".join(f"'{name}'" for name in sorted(own.unknown))
                self._fall_back(model, f"Keras cannot load {names} again")
        if not self.whole:
            self._form.mkdir(parents=True)
            Model().save(str(self._form / "MLmodel"))
            return lambda model, folder: model.save_weights(str(folder / WEIGHTS))
        settings, home = self._settings, kerases.of(model)
        options = dict(settings.keras_model_kwargs or {})
        spec = specs.input_spec(self._arguments, model)
        hidden = bool(compilation.unknown)
        saving.save_form(
            self._form,
            home,
            own.known if hidden else own.known | compilation.known,
            specs.signature(spec, model, trace=False) if settings.log_model_signatures else None,
            saving.input_example(self._arguments) if settings.log_input_examples else None,
            keras_model_kwargs=options or None,
        )
        (file,) = (self._form / "data").glob("model.*")
        file.unlink()
        place = file.relative_to(self._form)

        def save(model: Any, folder: Path) -> None:
            with parts.compilation_hidden(model, hidden):
                model.save(str(folder / place), **options)

        return save

    def _fall_back(self, model: Any, reason: str) -> None:
        self.whole = False
        self._save = None
        logger.warning(
            "mlflow_tfmon: the checkpoints of the model %r (%s) contain only its weights, since %s. To save the whole "
            "model, decorate its classes with @keras.saving.register_keras_serializable() and give them get_config().",
            model.name, type(model).__name__, " ".join(reason.split())[:300],
        )  # fmt: skip
