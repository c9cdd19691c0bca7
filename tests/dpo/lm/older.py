"""Logits of model folders as another version of transformers computes them: a program of its own, run by its python.

PYTHON older.py FOLDER TOKENS     prints {folder: {name: logits or the text of an error}} of FOLDER/*/{start,export}
"""

import json
import sys
import warnings
from pathlib import Path


def logits(folder, ids):
    import torch
    from transformers import AutoModelForCausalLM

    try:
        network, said = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        random = [*said["missing_keys"], *said["mismatched_keys"]]
        if random:
            return f"random: {random[:3]}"
        with torch.no_grad():
            return network.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().tolist()
    except Exception as error:  # a type or a file that this version does not know, or cannot run
        return f"{type(error).__name__}: {error}"[:200]


def main():
    warnings.simplefilter("ignore")
    root, ids = Path(sys.argv[1]), json.loads(sys.argv[2])
    found = {}
    for folder in sorted(root.iterdir()):
        found[folder.name] = {name: logits(folder / name, ids) for name in ("start", "export")}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
