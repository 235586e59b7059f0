"""hf_tfenc: the shortest honest path from raw text to your own transformer encoder on the Hub."""

import contextlib

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from . import modeling_tfenc
from .configuration_tfenc import TfEncConfig
from .modeling_tfenc import (
    TfEncForCausalLM,
    TfEncForMaskedLM,
    TfEncForMultipleChoice,
    TfEncForQuestionAnswering,
    TfEncForSequenceClassification,
    TfEncForTokenClassification,
    TfEncModel,
    TfEncPreTrainedModel,
)

__version__ = "0.1.0"

with contextlib.suppress(ImportError):  # Triton comes with torch where there may be a GPU
    from . import kernels

    modeling_tfenc.fused_kernels = kernels

# With these, checkpoints load through the Auto classes without `trust_remote_code` wherever the package is imported.
AutoConfig.register("tfenc", TfEncConfig, exist_ok=True)
AutoModel.register(TfEncConfig, TfEncModel, exist_ok=True)
AutoModelForMaskedLM.register(TfEncConfig, TfEncForMaskedLM, exist_ok=True)
AutoModelForCausalLM.register(TfEncConfig, TfEncForCausalLM, exist_ok=True)
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["tfenc"] = "TfEncForCausalLM"  # Trainer's label smoothing shifts labels by this name
AutoModelForSequenceClassification.register(TfEncConfig, TfEncForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(TfEncConfig, TfEncForTokenClassification, exist_ok=True)
AutoModelForQuestionAnswering.register(TfEncConfig, TfEncForQuestionAnswering, exist_ok=True)
AutoModelForMultipleChoice.register(TfEncConfig, TfEncForMultipleChoice, exist_ok=True)

__all__ = [
    "TfEncConfig",
    "TfEncForCausalLM",
    "TfEncForMaskedLM",
    "TfEncForMultipleChoice",
    "TfEncForQuestionAnswering",
    "TfEncForSequenceClassification",
    "TfEncForTokenClassification",
    "TfEncModel",
    "TfEncPreTrainedModel",
]
