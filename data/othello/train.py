"""Train the shipped Othello-GPT from scratch, on random games of a 6 × 6 board.

    OMP_NUM_THREADS=1 nice python data/othello/train.py           # stop and start again at will
    OMP_NUM_THREADS=1 nice python data/othello/train.py --size 8  # another board; not what is shipped

The weights go to `data/othello/SIZExSIZE/` (float16, with a card that says what it took). Until then the run lives in
a checkpoint in the cache folder.
"""

import argparse
import dataclasses
from pathlib import Path

import torch
from safetensors.torch import save_file

from mi_utils import othello_training
from mi_utils.files import atomic_path, cache_dir, write_json

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(othello_training.Plan):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default)
    plan = othello_training.Plan(**vars(parser.parse_args()))
    torch.set_num_threads(1)
    plain = othello_training.plain_model(
        plan.size, n_layers=plan.n_layers, d_model=plan.d_model, n_heads=plan.n_heads, seed=plan.seed
    )
    name = f"{plan.size}x{plan.size}"
    checkpoint = cache_dir() / "othello" / f"{name}-{plan.n_layers}-{plan.d_model}-{plan.seed}.safetensors"
    seconds, recent = 0.0, []
    for step, loss, seconds in othello_training.train(plain, plan, checkpoint):
        recent = [*recent[-99:], loss]
        if (step + 1) % 100 == 0:
            print(f"{step + 1:6d}  {sum(recent) / len(recent):.4f} nats  {seconds / 60:6.1f} minutes", flush=True)
    write(plain, plan, seconds, HERE / name)


def write(plain: torch.nn.Module, plan: othello_training.Plan, seconds: float, folder: Path) -> None:
    """The model in the layout of a Hugging Face folder, and what it took."""
    folder.mkdir(exist_ok=True)
    half = {name: weight.detach().half().contiguous() for name, weight in plain.state_dict().items()}
    with atomic_path(folder / "model.safetensors") as part:
        save_file(half, part, metadata={"format": "pt"})
    card = {
        "plan": dataclasses.asdict(plan),
        "games": plan.n_steps * plan.batch_size,
        "parameters": sum(parameter.numel() for parameter in plain.parameters()),
        "minutes": round(seconds / 60, 1),
        "command": "python data/othello/train.py",
        "torch": torch.__version__,
    }
    write_json(folder / "card.json", card)
    with atomic_path(folder / "config.json") as part:
        part.write_text(plain.config.to_json_string())


if __name__ == "__main__":
    main()
