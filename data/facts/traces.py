"""Trace known facts of seven relations in the default model, and write what was measured.

    nice python data/facts/traces.py N   # so many facts, relation by turns; half a minute each on one core

Stop and start again at will: what is in `traces.csv.gz` and `traced_facts.csv` is not made again.
"""

import argparse
import time
from itertools import chain, zip_longest
from pathlib import Path
from random import Random

import pandas as pd
import torch

import mi_utils as mi
from mi_utils import facts, patching, tracing
from mi_utils.files import atomic_path

TOKENIZER = mi.models.load_tokenizer()
NAMED = ["relation", "subject"]
ARM = ["kind", "width", "site"]
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


def add(path: Path, rows: pd.DataFrame, float_format: str | None = None) -> None:
    """Append to a table, whole or not at all."""
    table = pd.concat([pd.read_csv(path, keep_default_na=False), rows]) if path.exists() else rows
    packed = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None
    with atomic_path(path) as part:
        table.to_csv(part, index=False, float_format=float_format, compression=packed)


def done(path: Path, columns: list[str]) -> set[tuple]:
    """What a table holds already, by some of its columns."""
    if not path.exists():
        return set()
    return set(pd.read_csv(path, keep_default_na=False)[columns].itertuples(index=False, name=None))


def measure(n_facts: int) -> None:
    """Every arm of every fact that has not been measured; the first few arms of all facts come first."""
    model = mi.models.load_model()
    stack, order = patching.Stack(model), chosen()
    for arms in (ARMS[:N_MAIN], ARMS[N_MAIN:]):
        for n, fact in enumerate(order[:n_facts]):
            began, made = time.time(), measure_fact(stack, fact, order, arms)
            if made:
                print(n, fact.text, f"{made} arms, {time.time() - began:.0f} s", flush=True)


def measure_fact(stack, fact, others, arms) -> int:
    """Add what is missing of one fact; how many arms that was."""
    name = fact.relation, fact.subject
    have = done(tracing.TRACES, NAMED + ARM)
    missing = [arm for arm in arms if (*name, *arm) not in have]
    if not missing:
        return 0
    pair = tracing.corrupt(stack, tracing.question(TOKENIZER, fact), n_draws=tracing.RECORDED_DRAWS)
    if name not in done(tracing.TRACED_FACTS, NAMED):
        add(tracing.TRACED_FACTS, about(stack, pair, fact).round(4))
    placed = [(arm, *donor_and_place(stack, pair, fact, others, arm[2])) for arm in missing]
    traced = [trace(stack, pair, fact, donor, where, *arm) for arm, donor, where in placed if donor is not None]
    if traced:
        add(tracing.TRACES, pd.concat(traced).round(4))
    return len(traced)


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


def trace(stack, pair, fact, donor, where, kind, width, site) -> pd.DataFrame:
    sites = patching.at([where], len(pair.asked.tokens))[None]
    values = patching.sweep(stack, pair.corrupted, donor, both(pair.asked), sites, kind=kind, width=width)[0]
    said = {"relation": fact.relation, "subject": fact.subject, "kind": kind, "width": width, "site": site}
    table = pd.DataFrame(said | {"layer": range(stack.n_layers)})
    return table.assign(**dict(zip(("p", "log_odds"), values.mean(1).T.numpy(), strict=True)))


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


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n_facts", type=int)
    measure(parser.parse_args().n_facts)
