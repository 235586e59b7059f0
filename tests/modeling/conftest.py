"""What the tests of the model share."""

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
import transformers.integrations.flex_attention as transformers_flex
import transformers.masking_utils


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors: a second thread costs more than it computes, and six times more where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def fresh_warnings():
    """Let `warning_once` speak in each test."""
    transformers.utils.logging.warning_once.cache_clear()


@pytest.fixture
def uncompiled_flex(monkeypatch):
    """flex_attention by its reference formula: transformers compiles it for each kind of mask, seconds at a time."""
    block_mask = torch_flex.create_block_mask
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(transformers_flex.WrappedFlexAttention, "__call__", lambda self: torch_flex.flex_attention)
    monkeypatch.setattr(
        transformers.masking_utils, "create_block_mask", lambda _compile=True, **kwargs: block_mask(**kwargs)
    )


@pytest.fixture(params=("eager", "sdpa", "flex_attention", "varlen"))
def backend(request, uncompiled_flex):
    """Each attention implementation; without gradients, which flex_attention cannot compute on a CPU."""
    with torch.no_grad():
        yield request.param


@pytest.fixture(params=("eager", "sdpa", "varlen"))
def trainable_backend(request):
    """The attention implementations that train on a CPU."""
    return request.param
