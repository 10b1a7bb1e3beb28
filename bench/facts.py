"""How long a causal-trace map and an edit take, beside the forward passes of the same prompt.

./lab bench facts            a table
./lab bench facts --json     one JSON object
"""

from functools import partial

import mi_utils as mi
from bench import median_seconds, show

SETTING = "The city of Stockton, which is in the state of", "Stockton"
LAYER = 5
median = partial(median_seconds, repeats=3)


def costs() -> dict[str, float]:
    model = mi.models.load_model()
    stack = mi.patching.Stack(model)
    facts = mi.facts.one_token(model.tokenizer, mi.facts.load_known("us_city_state"))
    bench = mi.scoreboards.Bench(model, facts)
    mi.rome.second_moments(model, [mi.edits.Site(LAYER)])  # into the cache: once for each layer
    tokens = mi.facts.encode(model.tokenizer, SETTING[0])
    draws = tokens.expand(mi.trace_map.N_DRAWS, -1)

    def edit() -> None:
        mi.rome.edit(model, [bench.request(facts[0])], mi.edits.Site(LAYER))

    n_passes = len(tokens) * stack.n_layers
    return {
        f"seconds of a map of {len(tokens)} tokens and {len(draws)} draws": median(lambda: trace(model, stack)),
        f"seconds of {n_passes} whole passes, in place of the patched ones": n_passes * median(lambda: model(draws)),
        f"seconds of one edit by ROME at layer {LAYER}, and its request": median(edit),
    }


def trace(model, stack: mi.patching.Stack) -> None:
    traced = mi.trace_map.begin(stack, model.tokenizer, mi.trace_map.Setting(*SETTING))
    for _ in mi.trace_map.grow(stack, traced):
        pass


if __name__ == "__main__":
    show("A trace map and an edit.", costs)
