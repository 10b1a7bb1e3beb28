"""Which layer to train the shipped dictionaries on: what each layer holds, and what a dictionary there would cost.

    python data/saes/choose_layer.py        # 10 minutes on two cores; prints the table in data/README.md

Every layer gets the same small dictionary on the same text and the same two probes. `truth` is the accuracy of a
logistic regression that learns "is this statement true?" on cities and their countries and is tested on capitals: a
concept that later notebooks steer and probe. `next token` is the loss of the logit lens: how far the stream already is
a prediction. `outliers` is the share of tokens beyond ten times the median norm.
"""

import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import mi_utils as mi

LAYERS = range(4, 21, 2)
N_TOKENS, N_HELD_OUT, N_SPLICED, D_SAE, K, N_STEPS, SEED = 200_000, 16_000, 24, 1152, 32, 500, 0
STATEMENTS = {"city_country": "The city of {} is in {}.", "country_capital": "The capital of {} is {}."}


def main() -> None:
    model = mi.models.load_model()
    names = {layer: mi.hooks.hook_name("resid_post", layer) for layer in LAYERS}
    split = mi.corpus.split_held_out(mi.corpus.load_corpus())
    text, held_out_text = (
        mi.corpus.contexts(mi.corpus.sample(part, n, SEED), model.tokenizer).shuffled(SEED)
        for part, n in ((split.train, N_TOKENS), (split.held_out, N_HELD_OUT))
    )
    store = mi.activations.harvest(model, text.tokens, list(names.values()), products=torch.bfloat16)
    held_out = mi.activations.harvest(model, held_out_text.tokens, list(names.values()))
    facts = true_and_false(model)
    rows = {}
    for layer, name in names.items():
        dictionary = small_dictionary(store, name)
        every = torch.arange(held_out.n_rows)
        x, context = held_out.rows(name, every), held_out.origin(every).context
        report = mi.evaluation.reconstruction(dictionary, x, context)
        tokens = held_out_text.tokens[:N_SPLICED].long()
        keep = torch.ones_like(tokens, dtype=torch.bool)
        keep[:, 0] = False
        mean = x.mean(0)
        arms = {"sae": dictionary, "mean": lambda rows, mean=mean: mean.expand_as(rows)}
        losses = mi.evaluation.spliced_losses(model, tokens, name, arms, keep)
        rows[layer] = {
            "FVU": report.fvu,
            "CE recovered": mi.evaluation.ce_recovered(losses, "sae", "mean")[0],
            "nats added": (losses["sae"] - losses["clean"]).mean(),
            "next token": lens_loss(model, tokens, name),
            "truth": truth_accuracy(facts[name]),
            "outliers": outlier_share(model, tokens, name),
        }
        print(pd.DataFrame(rows).T.round(3).to_string(), flush=True)


def small_dictionary(store: mi.stores.ActivationStore, name: str):
    sae = mi.sae.build("batchtopk", store.d_in(name), D_SAE, K, seed=SEED)
    mi.sae.initialise_from_data(sae, next(store.batches(name, 8192, SEED)), SEED)
    mi.training.train(sae, store.batches(name, 1024, SEED, epochs=None), N_STEPS, lr=2e-3)
    statistics = store.statistics(name)
    return mi.training.to_inference(sae, statistics.mean, statistics.scale)


@torch.no_grad()
def lens_loss(model, tokens, name) -> float:
    resid = mi.hooks.run_with_cache(model, tokens, [name])[name]
    return mi.metrics.cross_entropy(model.unembed(model.ln_final(resid)), tokens).mean().item()


@torch.no_grad()
def outlier_share(model, tokens, name) -> float:
    norm = mi.hooks.run_with_cache(model, tokens, [name])[name].norm(dim=-1)
    return (norm > 10 * norm.median()).float().mean().item()


@torch.no_grad()
def true_and_false(model) -> dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Activations on the full stop of each statement, and whether it is true: by hook and relation."""
    names = [mi.hooks.hook_name("resid_post", layer) for layer in LAYERS]
    out: dict[str, dict] = {name: {} for name in names}
    for relation, form in STATEMENTS.items():
        facts = mi.facts.table(relation)
        pairs = list(zip(facts.subject, facts.answer, strict=True))[:168]
        wrong = [b for _, b in pairs[7:] + pairs[:7]]
        pairs = [(a, b, other) for (a, b), other in zip(pairs, wrong, strict=True) if b != other]
        texts = [form.format(a, answer) for a, *answers in pairs for answer in answers]
        label = torch.tensor([True, False] * len(pairs))
        rows: dict[str, list] = {name: [] for name in names}
        for text in texts:
            tokens = torch.tensor([model.tokenizer.encode(text)])
            for name, activation in mi.hooks.run_with_cache(model, tokens, names).items():
                rows[name].append(activation[0, -1])
        for name in names:
            out[name][relation] = torch.stack(rows[name]), label
    return out


def truth_accuracy(relations: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Learned on cities, tested on capitals; each set is centred and scaled by itself."""
    (x, y), (x_new, y_new) = relations["city_country"], relations["country_capital"]
    probe = LogisticRegression(C=0.01, max_iter=2000).fit(StandardScaler().fit_transform(x), y)
    return float(probe.score(StandardScaler().fit_transform(x_new), y_new))


if __name__ == "__main__":
    main()
