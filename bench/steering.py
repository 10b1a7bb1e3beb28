"""How long the steering console takes from a setting to its text, beside the bare forward passes it needs.

./lab bench steering            a table
./lab bench steering --json     one JSON object
"""

from functools import partial

import mi_utils as mi
from bench import median_seconds, show
from mi_utils.steering_console import N_TOKENS

PROMPT = "The last chapter of the story is"
median = partial(median_seconds, repeats=5)


def costs() -> dict[str, float]:
    model = mi.models.load_model()
    hook_name = mi.hooks.hook_name("resid_post", 12)
    names = ["sentiment", "french", "tense", "gender", "person", "food"]
    vectors = {name: mi.directions.random_direction(model.cfg.d_model, n) for n, name in enumerate(names)}
    gauges = {name: mi.steering.Gauge(model, concept) for name, concept in mi.concepts.load(names).items()}
    place = mi.steering_console.Place(hook_name, 140.0, vectors)
    start = {"sentiment": 0.2, "tense": 0.2}
    stack = mi.steering_console.steering_console(model, place, gauges, prompt=PROMPT, start=start)
    dose, ask = stack.children[1].children[1], stack.children[4].children[1]

    def move() -> None:
        dose.value = dose.value + 0.05

    return {
        f"seconds from slider to both texts, {N_TOKENS} tokens": median(move),
        f"seconds of {N_TOKENS} steered tokens": median(lambda: write(model, [place.addition("tense", 0.2)])),
        f"seconds of {N_TOKENS} unsteered tokens": median(lambda: write(model, [])),
        f"seconds of {N_TOKENS} tokens without hooks or console": median(lambda: bare(model)),
        "seconds of the pairs' heat-map, 6 directions": median(ask.click),
    }


def write(model, additions: list) -> None:
    for _ in mi.steering.stream(model, PROMPT, additions, n_tokens=N_TOKENS):
        pass


def bare(model) -> None:
    plain = mi.models.unhooked(model)
    plain.generate(model.to_tokens(PROMPT), max_new_tokens=N_TOKENS, min_new_tokens=N_TOKENS, do_sample=False)


if __name__ == "__main__":
    show("From a slider to new text.", costs)
