"""Trace known facts of seven relations in the default model, and write what was measured.

    nice python data/facts/traces.py measure N   # so many facts, relation by turns; half a minute each on one core
    python data/facts/traces.py write            # traces.csv.gz and traced_facts.csv, from what is there

Measuring stops and starts again at will: each fact's part stays in the cache folder.
"""

import argparse
import time
from itertools import chain, zip_longest
from random import Random

import pandas as pd
import torch

import mi_utils as mi
from mi_utils import facts, patching, tracing
from mi_utils.files import atomic_path, cache_dir

TOKENIZER = mi.models.load_tokenizer()
COLUMNS = ["relation", "subject", "kind", "width", "site", "layer", "p", "log_odds"]
PARTS = cache_dir() / "traces"
N_MAIN = 3
ARMS = [
    ("resid_post", 1, "subject"),
    ("resid_post", 1, "last"),
    ("mlp_out", 5, "subject"),
    ("mlp_out", 5, "last"),
    ("attn_out", 5, "last"),
    ("resid_post", 1, "other prompt"),
    ("resid_post", 1, "elsewhere"),
]
"""Kind, width of the window, and site: the subject's last token, the last token, a token that is neither, or the
subject's last token again with the state of another subject's run."""


def chosen() -> list[facts.Fact]:
    """Known facts, relation by turns, in an order that is fixed."""
    shuffled = [Random(0).sample(known, len(known)) for known in map(facts.load_known, tracing.TRACED)]
    return [fact for fact in chain.from_iterable(zip_longest(*shuffled)) if fact]


def measure(n_facts: int) -> None:
    """Every arm of every fact that has not been measured; the first few arms of all facts come first."""
    model = mi.models.load_model()
    stack, order = patching.Stack(model), chosen()
    for arms in (ARMS[:N_MAIN], ARMS[N_MAIN:]):
        for n, fact in enumerate(order[:n_facts]):
            began, done = time.time(), measure_fact(stack, fact, order, arms)
            if done:
                print(n, fact.text, f"{done} arms, {time.time() - began:.0f} s", flush=True)


def measure_fact(stack, fact, others, arms) -> int:
    """Write what is missing of one fact; how many arms that was."""
    folder = PARTS / f"{fact.relation}-{facts.table(fact.relation).subject.tolist().index(fact.subject)}"
    missing = [arm for arm in arms if not (folder / f"{'-'.join(map(str, arm))}.csv").exists()]
    if missing:
        pair = tracing.corrupt(stack, tracing.question(TOKENIZER, fact), n_draws=tracing.RECORDED_DRAWS)
        if not (folder / "about.csv").exists():
            with atomic_path(folder / "about.csv") as part:
                about(stack, pair, fact).to_csv(part, index=False)
        for arm in missing:
            traced = trace(stack, pair, fact, donor_and_place(stack, pair, fact, others, arm[2]), *arm)
            with atomic_path(folder / f"{'-'.join(map(str, arm))}.csv") as part:
                traced.to_csv(part, index=False)
    return len(missing)


def donor_and_place(stack, pair, fact, others, site) -> tuple[patching.Run | None, int]:
    """Whose states are put in, `None` where no other subject or no token between fits, and where."""
    n_pos, subject = len(pair.asked.tokens), pair.asked.subject
    if site == "last":
        return pair.clean, n_pos - 1
    if site == "elsewhere":
        between = range(subject.stop, n_pos - 1)
        return (pair.clean, Random(fact.subject).choice(between)) if between else (None, 0)
    if site == "other prompt":
        other = tracing.twin(TOKENIZER, fact, others)
        return other and stack.read(stack.embed(other.tokens[None])), subject[-1]
    return pair.clean, subject[-1]


def trace(stack, pair, fact, donor_and_place, kind, width, site) -> pd.DataFrame:
    donor, where = donor_and_place
    if donor is None:
        return pd.DataFrame(columns=COLUMNS)
    sites = patching.at([where], len(pair.asked.tokens))[None]
    values = patching.sweep(stack, pair.corrupted, donor, both(pair.asked), sites, kind=kind, width=width)[0]
    table = pd.DataFrame(values.mean(1).numpy(), columns=["p", "log_odds"])
    return table.assign(
        relation=fact.relation, subject=fact.subject, kind=kind, width=width, site=site, layer=range(stack.n_layers)
    )


def about(stack, pair, fact) -> pd.DataFrame:
    """The clean run, the corrupted one, and one where as many tokens after the subject are corrupted instead."""
    asked, metric = pair.asked, both(pair.asked)
    n_pos, n_subject = len(asked.tokens), len(asked.subject)
    after = range(asked.subject.stop, min(asked.subject.stop + n_subject, n_pos))
    control = stack.read(tracing.noised(stack, asked, n_draws=tracing.RECORDED_DRAWS, positions=after))
    row = {"relation": fact.relation, "subject": fact.subject, "answer": fact.target_true, "false": fact.target_false}
    row |= {"n_pos": n_pos, "n_subject": n_subject}
    for name, run in {"clean": pair.clean, "corrupted": pair.corrupted, "corrupted_after": control}.items():
        row[f"p_{name}"], row[f"log_odds_{name}"] = metric(run.logits).mean(0).tolist()
    return pd.DataFrame([row])


def both(asked: tracing.Question) -> patching.Metric:
    p, odds = patching.probability(asked.true), patching.log_odds(asked.true, asked.false)
    return lambda logits: torch.stack([p(logits), odds(logits)], -1)


def write() -> None:
    """Join the parts."""
    rows = pd.concat([pd.read_csv(path) for path in sorted(PARTS.glob("*/about.csv"))])
    parts = [pd.read_csv(path) for path in sorted(PARTS.glob("*/*-*.csv"))]
    traces = pd.concat([part for part in parts if len(part)])[COLUMNS]
    traces.round(4).to_csv(tracing.TRACES, index=False, compression={"method": "gzip", "mtime": 0})
    rows.round(4).to_csv(tracing.TRACED_FACTS, index=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("measure").add_argument("n_facts", type=int)
    commands.add_parser("write")
    asked = parser.parse_args()
    measure(asked.n_facts) if asked.command == "measure" else write()
