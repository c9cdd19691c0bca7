"""Whether a model fits the tokenizer and the longest sequence."""

import pytest

from pipeline.errors import InputError
from pipeline.models.fits import check_fit

X = {"model_type": "x-transformers", "num_tokens": 258, "max_seq_len": 1024, "positions": "absolute"}


def test_a_model_that_fits():
    check_fit(X, "m", 258, 1024)
    check_fit({**X, "max_seq_len": 512, "positions": "rotary"}, "m", 258, 1024)  # rotary ones know no limit


def test_a_tokenizer_with_more_tokens_than_the_model():
    with pytest.raises(InputError, match=r"the tokenizer has 258 tokens and the model of m knows 257") as error:
        check_fit({**X, "num_tokens": 257}, "m", 258, 1024)
    assert "tokenizer.path" in str(error.value)


def test_sequences_longer_than_the_model_reads():
    with pytest.raises(InputError, match=r"data.max_length is 1024 and the model of m has 512 positions") as error:
        check_fit({**X, "max_seq_len": 512}, "m", 258, 1024)
    assert "Set data.max_length to at most 512." in str(error.value)
