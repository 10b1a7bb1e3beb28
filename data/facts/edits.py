"""Make the tables of `09_edit_a_fact`: audits of planted worlds, edit success by layer, the scoreboard of methods.

    python data/facts/edits.py planted      # planted_edits.csv: worlds of one and two paths, three seeds
    python data/facts/edits.py sweep        # edit_sweep.csv: ROME at every layer
    python data/facts/edits.py scoreboard   # edit_scores.csv: every method on the same facts

Stop and start again at will: what is in a table is not made again.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pandas as pd
import torch
from traces import NAMED, add, chosen, done

from mi_utils import editing, edits, fact_worlds, facts, models, rome, scoreboards

SEEDS = range(3)
RELATIONS = ("city_country", "country_language", "us_city_state", "country_continent", "capital_country")
PORTIONS, N_FACTS = 12, 10  # of each relation's known facts; of its first ten portions one fact each, fifty together
LAYERS, LAYER = range(30), 5
N_SWEPT, BATCH = 54, 6
PLANTED, SWEEP, SCORES = (facts.FOLDER / name for name in (scoreboards.PLANTED, scoreboards.SWEEP, scoreboards.SCORES))
keep = partial(add, float_format="%.4g")


def planted() -> None:
    """Every way to change facts, in worlds of one and of two paths."""
    for seed in SEEDS:
        for n_paths in (1, 2):
            if (n_paths, seed) not in done(PLANTED, ["paths", "seed"]):
                keep(PLANTED, fact_worlds.audit(n_paths, seed))


def benches() -> Iterator[tuple[scoreboards.Bench, list[facts.Fact]]]:
    """For each relation its bench, and the facts to edit: known, with answers of one token, evenly over the table."""
    model = models.load_model()
    for relation in RELATIONS:
        known = facts.one_token(model.tokenizer, facts.load_known(relation))
        step = max(1, len(known) // PORTIONS)
        yield scoreboards.Bench(model, known), known[::step][:N_FACTS]


@torch.no_grad()
def sweep() -> None:
    """The facts that `traces.py` traces, at every layer: the probability of the new answer and of the old one.

    As in tracing, an answer of several tokens stands for its first one.
    """
    model = models.load_model()
    order = [first_tokens(model.tokenizer, fact) for fact in chosen()[:N_SWEPT]]
    before = edits.prefixes(model, scoreboards.PREFIX_LENGTHS)
    moments = rome.second_moments(model, [edits.Site(layer) for layer in LAYERS])
    for start in range(0, N_SWEPT, BATCH):
        batch = order[start : start + BATCH]
        requests = [edits.request(model, fact, before) for fact in batch]
        for layer in LAYERS:
            made = done(SWEEP, [*NAMED, "layer"])
            if all((fact.relation, fact.subject, layer) in made for fact in batch):
                continue
            found = rome.edit(model, requests, edits.Site(layer), moments=[moments[layer]] * len(batch))
            rows = [outcome(model, *parts) for parts in zip(batch, requests, found, strict=True)]
            keep(SWEEP, pd.DataFrame(rows).assign(layer=layer))


def first_tokens(tokenizer, fact: facts.Fact) -> facts.Fact:
    """The fact with both answers cut to their first tokens."""
    cut = (tokenizer.decode(facts.answer_tokens(tokenizer, a)[:1]) for a in (fact.target_true, fact.target_false))
    return replace(fact, **dict(zip(("target_true", "target_false"), cut, strict=True)))


def outcome(model, fact: facts.Fact, asked: edits.Request, edit: edits.Edit) -> dict:
    """What the edited model says to the prompt."""
    with edit.applied(model):
        said = model(asked.rows[0][None])[0, -1].softmax(-1)
    row = {"relation": fact.relation, "subject": fact.subject}
    return row | {"success": float(said[asked.new]), "old": float(said[asked.old])}


def scoreboard() -> None:
    """Every method on the same facts, a few facts of each relation at a time."""
    prepared = list(benches())
    for turn in range(N_FACTS):
        for bench, picked in prepared:
            fact = picked[turn] if turn < len(picked) else None
            made = done(SCORES, [*NAMED, "method"])
            for method in editing.METHODS if fact else ():
                if (fact.relation, fact.subject, method) in made:
                    continue
                asked = [bench.request(fact)]
                edit = editing.edited(bench.model, asked, method, LAYER, seed=turn)[0]
                row = {"relation": fact.relation, "subject": fact.subject, "method": method}
                keep(SCORES, pd.DataFrame([row | bench.score(fact, edit)]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    commands = {"planted": planted, "sweep": sweep, "scoreboard": scoreboard}
    for command in sys.argv[1:] or commands:
        commands[command]()
