"""What `10_fact_finding` takes from the record: each command writes one table beside this file.

    python data/facts/finding.py probes      # finding_probes.csv.gz: what can be read of a name's attribute, by layer
    python data/facts/finding.py athletes    # finding_athletes.csv: three sports, the examples in both orders

Together five minutes on two quiet cores. A relation that is in the table already is left as it is, so that a
run which was stopped goes on; delete the table to measure anew.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import mi_utils as mi
from mi_utils.effective_models import Recall

FOLDER = Path(__file__).resolve().parent
RELATIONS = {"us_city_state": (0, 4), "person_occupation": (5, 12), "city_country": (5, 10), "country_language": (0, 4)}
"""How many examples stand before the prompt, and how many names an answer must have."""
N_PROBED, N_SEEDS = 150, 5
SPORTS = ("basketball", "baseball", "football")
EXAMPLES = (("Stephen Curry", "basketball"), ("Hank Aaron", "baseball"), ("Peyton Manning", "football"))


def probes(model, relation):
    shots, least = RELATIONS[relation]
    asked = mi.name_facts.ask_for(model, relation, shots=shots, least=least, most=N_PROBED)
    table = mi.name_facts.readable(asked, mi.models.random_twin(model), range(N_SEEDS))
    return table.assign(relation=relation)


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
    "probes": (probes, "finding_probes.csv.gz", tuple(RELATIONS)),
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
