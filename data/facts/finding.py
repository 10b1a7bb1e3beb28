"""What `10_fact_finding` takes from the record: each command writes one table beside this file.

    python data/facts/finding.py probes      # finding_probes.csv: what can be read of a name's attribute, by layer
    python data/facts/finding.py switches    # finding_switches.csv.gz: which answers survive which simplification
    python data/facts/finding.py athletes    # finding_athletes.csv: three sports, the examples in both orders

Together a quarter of an hour on two quiet cores. A relation that is in the table already is left as it is, so that a
run which was stopped goes on; delete the table to measure anew.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import mi_utils as mi
from mi_utils.effective_models import Recall, Switches

FOLDER = Path(__file__).resolve().parent
RELATIONS = {"us_city_state": (0, 4), "person_occupation": (5, 12), "city_country": (5, 10), "country_language": (0, 4)}
"""How many examples stand before the prompt, and how many names an answer must have."""
SWEPT = ("us_city_state", "person_occupation")
N_PROBED, N_SWEPT, N_SEEDS = 200, 72, 5
FROM, ABOVE, BELOW = (0, 1, 2, 4, 8, 16), (4, 8, 14, 20), (1, 2, 4)
SPORTS = ("basketball", "baseball", "football")
EXAMPLES = (("Stephen Curry", "basketball"), ("Hank Aaron", "baseball"), ("Peyton Manning", "football"))


def probes(model, relation):
    shots, least = RELATIONS[relation]
    asked = mi.name_facts.ask_for(model, relation, shots=shots, least=least, most=N_PROBED)
    table = mi.name_facts.readable(asked, mi.models.random_twin(model), range(N_SEEDS))
    return table.assign(relation=relation)


def switches(model, relation):
    shots, least = RELATIONS[relation]
    asked = mi.name_facts.ask_for(model, relation, shots=shots, least=least, most=N_SWEPT)
    n_layers = model.cfg.n_layers
    steps = {("nothing", -1): Switches(), ("alone", -1): Switches(alone=True)}
    steps |= {("attention from", n): Switches(attention=range(n, n_layers)) for n in FROM}
    steps |= {("MLPs above", n): Switches(mlps=range(n + 1, n_layers)) for n in ABOVE}
    steps |= {("MLPs below", n): Switches(mlps=range(n)) for n in BELOW}
    rows = []
    for (step, layer), switch in steps.items():
        tried = {"chosen": switch} | ({"random": switch.at_random(n_layers, seed=layer)} if switch.places else {})
        for choice, one in tried.items():
            right = asked.recall.ask(one).right(asked.truth).int()
            key = {"relation": relation, "step": step, "layer": layer, "choice": choice}
            rows.append(pd.DataFrame({"name": asked.recall.names, "right": right}).assign(**key))
            print(relation, step, layer, choice, round(float(right.float().mean()), 3), flush=True)
    return pd.concat(rows)


def athletes(model, _relation):
    facts = [f for f in mi.facts.load("athlete_sport") if f.target_true in SPORTS]
    names, answers = [f.subject for f in facts], [f.target_true for f in facts]
    rows = []
    for order, examples in (("as given", EXAMPLES), ("reversed", EXAMPLES[::-1])):
        prompt = "".join(f"{name} plays the sport of {sport}.\n" for name, sport in examples)
        said = Recall(model, prompt + "{} plays the sport of", names, SPORTS).ask().logits.argmax(1)
        rows.append(pd.DataFrame({"name": names, "sport": answers, "said": np.array(SPORTS)[said], "examples": order}))
    return pd.concat(rows)


COMMANDS = {
    "probes": (probes, "finding_probes.csv", tuple(RELATIONS)),
    "switches": (switches, "finding_switches.csv.gz", SWEPT),
    "athletes": (athletes, "finding_athletes.csv", ("athlete_sport",)),
}


def main(command, *only):
    measure, name, relations = COMMANDS[command]
    path = FOLDER / name
    done = pd.read_csv(path) if path.exists() else pd.DataFrame({"relation": []})
    model = mi.models.load_model()
    for relation in only or relations:
        if relation in set(done.relation):
            continue
        new = measure(model, relation)
        done = pd.concat([done, new.assign(relation=relation).round(5)])
        with mi.files.atomic_path(path) as part:
            done.to_csv(part, index=False, compression="gzip" if name.endswith(".gz") else None)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
