"""Coexistence with MLflow's own autologging of `fit`: exactly one of the two records a training.

Ours does, in either order of the two calls, since it records all that MLflow's does. MLflow's comes back, with the
arguments that it was given, when ours is disabled.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from mlflow_tfmon.errors import contained, say_once
from mlflow_tfmon.internals import find
from mlflow_tfmon.tracking.runs import autologging

# Integration and the module whose `autolog` patches `keras.Model.fit` by its global `safe_patch` (MLflow 3.0 to 3.17).
_PEERS = {"tensorflow": "mlflow.tensorflow", "keras": "mlflow.keras.autologging"}
_originals: dict[str, Any] = {}


def set_aside() -> None:
    """Takes the peers' patches of `fit` out, and keeps those from being put in that are enabled later."""
    for integration, module_name in _PEERS.items():
        with contained(f"disabling mlflow.{integration}.autolog", "a fit may be recorded twice"):
            if not autologging(integration, "disable", True):
                find("mlflow.utils.autologging_utils.safety.revert_patches")(integration)
                _say(integration)
            module = importlib.import_module(module_name)
            if integration not in _originals:
                _originals[integration] = module.safe_patch
                module.safe_patch = _instead(integration, module.safe_patch)  # type: ignore[attr-defined]


def _instead(integration: str, safe_patch: Any) -> Any:
    def keep_out(name: str, destination: Any, function: str, *args: Any, **kwargs: Any) -> Any:
        if function != "fit":
            return safe_patch(name, destination, function, *args, **kwargs)
        return _say(integration)

    return keep_out


def _say(integration: str) -> None:
    say_once(
        f"peer {integration}",
        f"mlflow_tfmon: monitors fit instead of mlflow.{integration}.autolog, and records the same things; "
        "to use MLflow's own, call mlflow_tfmon.autolog(disable=True).",
    )


def say_of_callbacks(callbacks: list[Any]) -> None:
    """Says, once, that MLflow's own callback in a fit records it a second time, in the same run."""
    for one in callbacks:
        made = [
            cls for cls in type(one).__mro__ if cls.__name__ == "MlflowCallback"
        ]  # MLflow has two (3.0 to 3.17)
        if any(cls.__module__.startswith("mlflow.") for cls in made):
            say_once(
                "MlflowCallback",
                "mlflow_tfmon: an MlflowCallback in fit(callbacks=...) logs the same metrics a second time, into the "
                "same run if that is the active one; remove it: autolog() records everything it does.",
            )


def bring_back() -> None:
    """Undoes `set_aside`; a peer that is enabled watches `fit` again."""
    for integration, module_name in _PEERS.items():
        safe_patch = _originals.pop(integration, None)
        if safe_patch is None:
            continue
        module = sys.modules[module_name]
        module.safe_patch = safe_patch  # type: ignore[attr-defined]
        if not autologging(integration, "disable", True):
            with contained(f"restoring mlflow.{integration}.autolog", "it must be enabled again"):
                arguments = dict(find("mlflow.utils.autologging_utils.AUTOLOGGING_INTEGRATIONS")[integration])
                module.autolog(**arguments)
