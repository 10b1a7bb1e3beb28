"""Tools behind the notebooks. `import mi_utils as mi`, then `mi.models.load_model()`; modules load when first used."""

import importlib
import os
from types import ModuleType

# torch's threads wait for one another by spinning: without an end, small models take 40 times as long beside any other
# busy process; asleep at once, texts in the steering console take a third longer on a quiet machine
os.environ.setdefault("GOMP_SPINCOUNT", "100000")

__all__ = [
    "absorption",
    "activations",
    "attribution",
    "auditing",
    "behaviours",
    "cards",
    "circles",
    "claims",
    "class_probes",
    "cluster",
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
    "effective_models",
    "evaluation",
    "exercises",
    "explanations",
    "explorers",
    "extraction",
    "fact_finding",
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
    "memorisers",
    "meta",
    "meta_explorer",
    "metrics",
    "models",
    "name_facts",
    "name_neurons",
    "neuron_explorer",
    "othello_board",
    "othello_editing",
    "othello_features",
    "othello_games",
    "othello_model",
    "othello_probes",
    "othello_training",
    "othello_worlds",
    "pair_worlds",
    "paired_activations",
    "patching",
    "paths",
    "peers",
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
    "stores",
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
