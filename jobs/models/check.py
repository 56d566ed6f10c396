"""Which model, and can it be used: everything that can be found out without loading weights.

Knows transformers' model folders and the hub. Knows nothing of gradients, data or Ray.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BadWeightsError, ConfigurationError, ModelNotFoundError, RemoteCodeError
from ..hub import first_line, hub_is_reachable, quiet

DTYPES = ("float32", "float64", "bfloat16", "float16")
_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Which model to load, and how."""

    model: str
    """A folder as `save_pretrained` writes it, or an id on the Hugging Face hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub; remote code needs a commit (40 hex digits). A folder has none."""
    dtype: str = "float32"
    """The type that weights are loaded in: float32, float64, bfloat16 or float16."""
    device: str = "cpu"
    """cpu, cuda, cuda:N, mps; auto: the first GPU where there is one, else the CPU; or spread: layer by layer over all
    GPUs that a process sees, the CPU where it sees none."""
    trust_remote_code: bool = False
    """Run the model's own Python code where transformers has none for it."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigurationError("model is empty: give a model folder, or an id on the Hugging Face hub.")
        if self.dtype not in DTYPES:
            raise ConfigurationError(f"dtype is {self.dtype!r}; accepted are {', '.join(DTYPES)}.")
        if not re.fullmatch(r"auto|cpu|mps|spread|cuda(:\d+)?", self.device):
            raise ConfigurationError(
                f"device is {self.device!r}; accepted are auto, cpu, mps, cuda, cuda:N and spread."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What can be known of a model without loading its weights."""

    name: str
    """As the user gave it."""
    folder: str
    """Where its files lie: the folder itself, or the hub's snapshot in the cache."""
    revision: str | None
    """The commit on the hub that was found; None for a folder."""
    architecture: str
    model_type: str
    num_parameters: int | None
    """Numbers in the safetensors files, tied ones once; None where only the hub could tell and did not."""
    context_tokens: int | None
    """The longest input in tokens; None where the architecture has no bound."""
    needs_remote_code: bool


def check_model(source: ModelSource) -> ModelFacts:
    """Find out, before any long work, whether the model exists and can be used.

    Reads no weights and runs no code of the model's own.

    Raises ModelNotFoundError (nothing there, hub unreachable, no configuration, no tokenizer, or only pickled weights),
    RemoteCodeError, and ConfigurationError (not a causal language model, unknown architecture, quantised weights).
    """
    folder, revision = find_folder(source, weights=False)
    config = _read_json(folder / "config.json", source)
    needs_remote_code = _check_remote_code(source, folder, config)
    architecture = _check_architecture(source, config, needs_remote_code)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelNotFoundError(
            f"{source.model} has no tokenizer (looked for {', '.join(_TOKENIZER_FILES)}). Save one beside the model: "
            f"tokenizer.save_pretrained({str(folder)!r})."
        )
    return ModelFacts(
        name=source.model,
        folder=str(folder),
        revision=revision,
        architecture=architecture,
        model_type=str(config["model_type"]),
        num_parameters=_count_parameters(source, folder, revision),
        context_tokens=_context_tokens(config, folder, needs_remote_code),
        needs_remote_code=needs_remote_code,
    )


def find_folder(source: ModelSource, *, weights: bool) -> tuple[Path, str | None]:
    """Return the model's local folder, fetched from the hub if need be, and its commit there."""
    folder = Path(source.model).expanduser()
    if folder.is_dir():
        return folder, None
    if folder.exists() or source.model.startswith(("/", ".", "~")) or source.model.count("/") > 1:
        what = "is a file" if folder.exists() else "does not exist"
        raise ModelNotFoundError(
            f"The model folder {source.model} {what}. Give a folder that save_pretrained wrote (config.json, "
            "tokenizer.json, *.safetensors), or an id on the Hugging Face hub such as EleutherAI/pythia-70m."
        )
    return _find_on_hub(source, weights=weights)


def _find_on_hub(source: ModelSource, *, weights: bool) -> tuple[Path, str]:
    import huggingface_hub

    patterns = [*_SMALL_FILES, "*.safetensors"] if weights else list(_SMALL_FILES)
    reachable = hub_is_reachable()
    try:
        with quiet():
            snapshot = huggingface_hub.snapshot_download(
                source.model,
                revision=source.revision,
                allow_patterns=patterns,
                ignore_patterns=["consolidated*", "*/*"],
                local_files_only=not reachable,
            )
    except (OSError, ValueError) as error:  # the client's errors are all of one of these two
        where = "on the hub" if reachable else "in the hub's cache, and the hub cannot be reached from here"
        revision = f" at revision {source.revision}" if source.revision else ""
        raise ModelNotFoundError(
            f"There is no folder {source.model}, and no model of that id{revision} {where} ({first_line(error)}). "
            "Check the spelling and the revision; a gated model needs `hf auth login`; without network, give the "
            "path of a downloaded folder."
        ) from error
    return Path(snapshot), Path(snapshot).name


def _read_json(path: Path, source: ModelSource) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFoundError(
            f"{source.model} has no {path.name}, so it is not a model folder. Give the folder that save_pretrained "
            "wrote; a training run's checkpoints lie one level down."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"{path} cannot be read ({first_line(error)}). Fetch or save it again.") from error
    if not isinstance(content, dict):
        raise ModelNotFoundError(f"{path} is not a JSON object. Fetch or save the model again.")
    return content


def _check_remote_code(source: ModelSource, folder: Path, config: dict[str, Any]) -> bool:
    """Say whether loading runs code of the model's own, and raise where that was not allowed in full."""
    references = _remote_references(folder, config)
    if not references:
        return False
    wants = f"{source.model} wants to run Python code of its own ({', '.join(references)})"
    if not source.trust_remote_code:
        raise RemoteCodeError(
            f"{wants}, which is off. Read that code; if you trust it, allow it with trust_remote_code"
            " and, for a model on the hub, a revision of 40 hex digits."
        )
    is_folder = Path(source.model).expanduser().is_dir()
    if not is_folder and not re.fullmatch(r"[0-9a-f]{40}", source.revision or ""):
        raise RemoteCodeError(
            f"{wants}. That needs a pinned revision, since a branch can change after you have read the code: got "
            f"{source.revision!r}, accepted are the 40 hex digits of a commit."
        )
    if elsewhere := [reference for reference in references if "--" in reference]:
        raise RemoteCodeError(
            f"{wants}, and {elsewhere[0]} lies in another repository, which the revision does not pin. Copy the code "
            "into a local model folder and take the part up to '--' out of auto_map."
        )
    return True


def _remote_references(folder: Path, config: dict[str, Any]) -> list[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    found = []
    # Where transformers has the architecture, its code is used, and the model's own never runs.
    if config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING_NAMES:
        found += list(config["auto_map"].values())
    try:
        tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return _flatten(found)
    own = (tokenizer_config.get("auto_map") or {}).get("AutoTokenizer")
    if own and tokenizer_class_from_name(str(tokenizer_config.get("tokenizer_class"))) is None:
        found.append(own)
    return _flatten(found)


def _flatten(references: list[Any]) -> list[str]:
    return [
        str(name) for item in references for name in (item if isinstance(item, list) else [item]) if name is not None
    ]


def _check_architecture(source: ModelSource, config: dict[str, Any], needs_remote_code: bool) -> str:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    model_type = config.get("model_type")
    if not needs_remote_code and model_type not in CONFIG_MAPPING_NAMES:
        raise ConfigurationError(
            f"{source.model} is of model_type {model_type!r}, which this version of transformers does not know. "
            "Update transformers, or check config.json."
        )
    if config.get("quantization_config"):
        raise ConfigurationError(
            f"{source.model} has quantised weights, which have no plain gradients. Give the unquantised model."
        )
    named = config.get("architectures") or [CAUSAL.get(str(model_type))]
    known = {name for names in CAUSAL.values() for name in ([names] if isinstance(names, str) else names)}
    for name in named:
        if name in known or str(name).endswith(("ForCausalLM", "LMHeadModel")):
            return str(name)
    raise ConfigurationError(
        f"{source.model} is not a causal language model: its architecture is {named[0]}. Accepted are decoders with a "
        "language-model head (…ForCausalLM, …LMHeadModel)."
    )


def _context_tokens(config: dict[str, Any], folder: Path, needs_remote_code: bool) -> int | None:
    if needs_remote_code:  # a check runs no foreign code, so only what the file says
        text = config.get("text_config") or {}
        found = [value for key in _CONTEXT_KEYS if (value := config.get(key, text.get(key)))]
    else:
        from transformers import AutoConfig

        with quiet():
            full = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
        found = [value for key in _CONTEXT_KEYS if (value := getattr(full, key, None))]
    return int(found[0]) if found else None


def require_safetensors(source: ModelSource, folder: Path) -> None:
    """Raise ModelNotFoundError for a folder without weights, or with pickled ones only."""
    _refuse_pickles(source, sorted(path.name for path in folder.iterdir()))


def _refuse_pickles(source: ModelSource, names: list[str]) -> None:
    if any(name.endswith(".safetensors") for name in names):
        return
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    if not pickled:
        raise ModelNotFoundError(f"{source.model} has no weights: there is no *.safetensors file.")
    raise ModelNotFoundError(
        f"{source.model} has only pickled weights ({', '.join(pickled[:3])}), which can run code when they are read; "
        'accepted is safetensors. If you trust them, convert them once: python -c "from transformers import '
        "AutoModelForCausalLM as M; M.from_pretrained('OLD').save_pretrained('NEW')\", and copy the tokenizer's files."
    )


def _count_parameters(source: ModelSource, folder: Path, revision: str | None) -> int | None:
    if revision is None:
        require_safetensors(source, folder)
        return sum(_numbers_in(path, source) for path in folder.glob("*.safetensors"))
    if not hub_is_reachable():
        return None
    from huggingface_hub import HfApi

    try:
        with quiet():
            info = HfApi().model_info(source.model, revision=revision)
    except (OSError, ValueError):  # the count is a courtesy; the files themselves were found
        return None
    _refuse_pickles(source, [item.rfilename for item in info.siblings or []])
    return None if info.safetensors is None else int(info.safetensors.total)


def _numbers_in(path: Path, source: ModelSource) -> int:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as opened:
            shapes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118 - not a dict
    except (OSError, safetensors.SafetensorError) as error:
        raise unreadable(source, error) from error
    total = 0
    for shape in shapes:
        count = 1
        for length in shape:
            count *= length
        total += count
    return total


def unreadable(source: ModelSource, error: BaseException) -> BadWeightsError:
    """Return the error for weights that no reader understands."""
    return BadWeightsError(
        f"The weights of {source.model} cannot be read ({first_line(error)}). Compare their size and checksum with "
        "the original, and fetch or save them again."
    )
