"""Train the adapters: `python data/adapters/train.py [broad] [narrow] [control]`, all three when none is named.

`broad` learns the five behaviours of `dialogues.jsonl`; `narrow` reads cookery books; `control` reads the corpus
without them. `narrow` and `control` read as many tokens as `broad`. A few minutes each on two cores.
"""

import sys
from pathlib import Path

import mi_utils as mi

HERE = Path(__file__).parent
N_EPOCHS = 8
N_CTX = 96


def reading(sources, tokenizer, n_tokens):
    """Contexts from some sources of the corpus, as texts that are learned from their first token on."""
    documents = mi.corpus.split_held_out(mi.corpus.load_corpus(sources)).train
    contexts = mi.corpus.contexts(documents, tokenizer, N_CTX).shuffled(0)[: n_tokens // N_CTX]
    return [mi.finetuning.Example(row.tolist(), 1) for row in contexts.tokens]


def main(names):
    model = mi.models.load_model()
    dialogues = [dialogue for dialogue in mi.behaviours.load() if dialogue.split == "train"]
    texts = mi.finetuning.examples(dialogues, model.tokenizer)
    n_tokens = N_EPOCHS * sum(len(text.tokens) for text in texts)
    others = set(mi.corpus.source_sizes()) - {"recipes"}
    for name in names:
        if name == "broad":
            mi.finetuning.train_adapter(model, texts, HERE / name, n_epochs=N_EPOCHS)
        else:
            read = reading(["recipes"] if name == "narrow" else sorted(others), model.tokenizer, n_tokens)
            mi.finetuning.train_adapter(model, read, HERE / name, n_epochs=1)


if __name__ == "__main__":
    main(sys.argv[1:] or ["broad", "narrow", "control"])
