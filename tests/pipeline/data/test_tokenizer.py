"""Which tokenizer a configuration means."""

import pytest

from pipeline.config import Config
from pipeline.data.tokenizer import open_tokenizer, pad_id
from pipeline.errors import ConfigError, InputError
from tests.pipeline.files import config_file


def tokenizer_of(folder, **sections):
    return open_tokenizer(Config.load(config_file(folder, **sections)))


def test_a_policy_of_x_transformers_reads_bytes_unless_told_otherwise(tmp_path):
    one = tokenizer_of(tmp_path)
    assert len(one) == 258
    assert pad_id(one) == one.pad_token_id
    other = tokenizer_of(tmp_path, tokenizer={"path": "bytes", "eos_token": "<stop>", "chat_template": "chatml"})
    assert (other.eos_token, "<|im_start|>" in other.chat_template) == ("<stop>", True)


def test_a_random_policy_needs_a_tokenizer_to_be_named(tmp_path):
    policy = {"kind": "huggingface", "config": {"model_type": "llama"}}
    with pytest.raises(ConfigError, match=r"tokenizer\.path is missing"):
        tokenizer_of(tmp_path, policy=policy)


def test_a_tokenizer_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer.path = '.*none': there is no such folder"):
        tokenizer_of(tmp_path, tokenizer={"path": "./none"})
