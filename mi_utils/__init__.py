"""Tools behind the notebooks. `import mi_utils as mi`, then `mi.models.load_model()`; modules load when first used."""

import importlib
from types import ModuleType

__all__ = [
    "absorption",
    "activations",
    "attribution",
    "auditing",
    "behaviours",
    "cards",
    "circles",
    "claims",
    "concepts",
    "corpus",
    "crosscoders",
    "cue_worlds",
    "diff_explorer",
    "diffing",
    "directions",
    "dosing",
    "edit_auditor",
    "editing",
    "edits",
    "evaluation",
    "exercises",
    "explanations",
    "explorers",
    "fact_worlds",
    "facts",
    "families",
    "files",
    "finetuning",
    "hooks",
    "indexing",
    "language_worlds",
    "latents",
    "lenses",
    "markup",
    "meta",
    "meta_explorer",
    "metrics",
    "models",
    "pair_worlds",
    "paired_activations",
    "patching",
    "paths",
    "plots",
    "probes",
    "probing",
    "recall_worlds",
    "restoring",
    "rome",
    "sae",
    "scoreboards",
    "session",
    "sparse_coding",
    "steering",
    "steering_console",
    "stitching",
    "theme",
    "trace_map",
    "tracing",
    "training",
    "widgets",
    "worlds",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"mi_utils.{name}")
    raise AttributeError(f"mi_utils has no module {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
