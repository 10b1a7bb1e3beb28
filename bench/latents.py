"""What an index of latents costs beside the forward pass it rides on, and how fast it answers.

    ./lab bench latents            a table
    ./lab bench latents --json     one JSON object

The forward pass alone and the whole watch (forward, encoding, counting) take turns over the same contexts in one
process; medians over the turns. What is computed once at the end (logit effects, neighbours, co-firing, writing) is
timed apart, since it does not grow with the text. Peak memory is that of a process of its own while it indexes N and
10 N tokens; so that ten million tokens fit into minutes, these go through the tiny planted model with as many random
rows as the dictionary has latents: the index is the same size, only the forward pass is smaller. Latency of a card and
of a prompt is without the browser; `tests/test_browser.py` measures with it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import mi_utils as mi
from mi_utils.indexing import _Watch, fired

PROMPT = "The quick brown fox jumps over the lazy dog while the old cat sleeps near the warm stove"


def main() -> None:
    parser = argparse.ArgumentParser(description="An index of latents beside the forward pass it rides on.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--name", default="resid12_18432", help="a shipped dictionary with an index")
    parser.add_argument("--contexts", type=int, default=128, help="contexts in one turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--memory-tokens", type=int, default=1_000_000, help="measure memory at this and ten times it")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(peak_memory(arguments.memory_of, arguments.rows))
        return
    model, dictionary = mi.models.load_model(), mi.sae.load(arguments.name)
    result = costs(model, dictionary, arguments.contexts, arguments.turns) | latencies(
        model, dictionary, arguments.name
    )
    for n_tokens in (arguments.memory_tokens, 10 * arguments.memory_tokens):
        result[f"peak_megabytes_at_{n_tokens}_tokens"] = run_apart(n_tokens, len(dictionary.W_dec))
    if arguments.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:42s} {value:14,.3f}" for name, value in result.items()))


def costs(model, dictionary, n_contexts: int, turns: int) -> dict[str, float]:
    hook_name = dictionary.cfg.metadata.hook_name
    documents = mi.corpus.split_held_out(mi.corpus.load_corpus()).held_out
    text = mi.corpus.contexts(documents, model.tokenizer).shuffled(0)[:n_contexts]

    class Silent:
        """Encodes to nothing, so that only the forward pass and its bookkeeping are left."""

        W_dec = torch.zeros(1, 1)

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :1] * 0

        def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
            return feature_acts

    def forward() -> None:
        for _ in fired(model, Silent(), text.tokens, hook_name):
            pass

    def watch() -> None:
        seen = _Watch(len(dictionary.W_dec), 1, tuple(text.tokens.shape), mi.latents.Settings(), 0)
        source = np.zeros(len(text), dtype=int)
        for batch in fired(model, dictionary, text.tokens, hook_name):
            seen.add(batch, source)

    seconds = {"forward": [], "watch": []}
    for turn in range(-1, turns):
        for name, run in (("forward", forward), ("watch", watch)):
            start = time.perf_counter()
            run()
            if turn >= 0:  # the first turn warms up
                seconds[name].append(time.perf_counter() - start)
    rates = {name: text.tokens.numel() / statistics.median(values) for name, values in seconds.items()}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        mi.indexing.build(model, dictionary, text[:16], hook_name, Path(folder) / "index", progress=False)
        at_the_end = time.perf_counter() - start - 16 * text.tokens.shape[1] / rates["watch"]
    return {
        "forward_tokens_per_second": rates["forward"],
        "index_tokens_per_second": rates["watch"],
        "cost_relative_to_forward": rates["forward"] / rates["watch"],
        "seconds_once_at_the_end": at_the_end,
    }


def latencies(model, dictionary, name: str) -> dict[str, float]:
    start = time.perf_counter()
    index = mi.latents.shipped_index(name, model.tokenizer)
    index.card(0)
    opened = time.perf_counter() - start
    read = mi.hooks.fast_reader(model, [index.about["hook_name"]], torch.tensor([[0, 1, 2, 3]]))
    cards, prompts = [], []
    for latent in np.random.default_rng(0).choice(index.d_sae, 50, replace=False).tolist():
        start = time.perf_counter()
        index.card(latent)._repr_html_()
        cards.append(time.perf_counter() - start)
        start = time.perf_counter()
        mi.latents.read_prompt(model, dictionary, index, PROMPT, read=read)
        prompts.append(time.perf_counter() - start)
    return {
        "milliseconds_to_open_and_first_card": 1000 * opened,
        "milliseconds_per_card_95th_percentile": 1000 * float(np.quantile(cards, 0.95)),
        "milliseconds_per_prompt_95th_percentile": 1000 * float(np.quantile(prompts, 0.95)),
    }


def run_apart(n_tokens: int, n_rows: int) -> float:
    """Peak memory in MB of a process of its own that indexes so many tokens."""
    command = [sys.executable, "-m", "bench.latents", "--memory-of", str(n_tokens), "--rows", str(n_rows)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_memory(n_tokens: int, n_rows: int) -> float:
    planted = mi.language_worlds.planted_meanings()
    text = planted.text(n_tokens // 128, n_ctx=128)
    rows = mi.worlds.random_dictionary(n_rows, planted.dictionary.W_dec.shape[1], seed=0)
    dictionary = mi.language_worlds.PlantedDictionary(rows, threshold=1.15)  # about 30 rows fire on a token
    Path("/proc/self/clear_refs").write_text("5")  # Linux starts the peak anew
    with tempfile.TemporaryDirectory() as folder:
        mi.indexing.build(planted.model, dictionary, text, planted.hook_name, Path(folder) / "index", progress=False)
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


if __name__ == "__main__":
    main()
