"""The sizes of known models, from their config.json."""

from typing import Any


def _rope(hidden: int, inner: int, layers: int, heads: int, key_values: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_values,
        "vocab_size": vocabulary,
        "tie_word_embeddings": hidden < 4096,
    }


QWEN_05B = _rope(896, 4864, 24, 14, 2, 151_936)
SMOL_135M = _rope(576, 1536, 30, 9, 3, 49_152)
QWEN_3B = _rope(2048, 11008, 36, 16, 2, 151_936)
QWEN_8B = _rope(4096, 12288, 36, 32, 8, 151_936)
LLAMA_1B = _rope(2048, 8192, 16, 32, 8, 128_256)
LLAMA_8B = _rope(4096, 14336, 32, 32, 8, 128_256)
LLAMA_70B = _rope(8192, 28672, 80, 64, 8, 128_256)
