"""What a checkpoint is: a causal language model, a classifier with one logit, or neither; no weights are read."""

import re
from collections.abc import Mapping
from typing import Any

from stagealign.base.errors import StagealignError
from stagealign.policy.architectures import not_causal
from stagealign.policy.weight_files import HeaderEntry

HEAD = re.compile(
    r"(^|\.)(score|classifier|logits_proj|(classifier|classification_head)\.(out_proj|linear_out)|"
    r"sequence_summary\.summary)\.weight$"
)
"""Last layer of a classifier's head, by the names in transformers; its first dimension is the number of logits."""
CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")
REWARDS = re.compile(r"Reward|Score|ValueModel|ForRegression", re.IGNORECASE)
"""In names of reward models' own classes, such as `LlamaForRewardModel`."""
WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForSpeculativeDecoding")


def check_causal(name: str, config: Any, tensors: Mapping[str, HeaderEntry]) -> None:
    """Raises StagealignError unless a config and the header of the weights are of a causal language model."""
    made_as, head = _made_as(config), head_of(tensors)
    if made_as.endswith(CLASSIFIERS) or REWARDS.search(made_as):
        raise _a_classifier(name, made_as)
    why = not_causal(config)
    if head is not None and not made_as.endswith(WRITERS) and not (why and made_as):
        raise _a_classifier(name, head[0])
    if why:
        wrapper = config.get_text_config() is not config
        advice = "name the language model inside" if wrapper else "a policy is a causal language model: name one"
        raise StagealignError(
            f"checkpoint {name!r}: of type {config.model_type!r}, {why}; {advice}, or serve the checkpoint and give "
            "--policy-url"
        )


def _a_classifier(name: str, shown: str) -> StagealignError:
    return StagealignError(
        f"checkpoint {name!r}: a classifier ({shown}), not a policy; name the language model here, and a reward model "
        f"as --oracle reward:{name}"
    )


def check_reward(name: str, config: Any, tensors: Mapping[str, HeaderEntry]) -> None:
    """Sets `num_labels` to 1 where the head has one row. Raises StagealignError unless it is a classifier of one logit.

    The head's shape in the safetensors header decides; without the weights on this machine, the config does.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    head, made_as = head_of(tensors), _made_as(config)
    advice = "a reward model has one logit (num_labels=1): use a checkpoint with one"
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise StagealignError(
            f"checkpoint {name!r}: of type {config.model_type!r}, which transformers has no classifier for; {advice}"
        )
    if head is not None and head[1] != 1:
        raise StagealignError(f"checkpoint {name!r}: its head {head[0]} has {head[1]} rows; {advice}")
    if head is None and (config.num_labels != 1 or made_as.endswith(WRITERS)):
        what = f"{made_as}, a language model" if made_as.endswith(WRITERS) else f"num_labels={config.num_labels}"
        raise StagealignError(
            f"checkpoint {name!r}: its config has {what}"
            + (", and its weights have no classifier's head" if tensors else "")
            + f"; {advice}"
        )
    if head is not None and config.num_labels != 1:
        config.num_labels = 1


def head_of(tensors: Mapping[str, HeaderEntry]) -> tuple[str, int] | None:
    """Name and rows of a classifier's last layer; None if the weights have none."""
    found = [(key, entry.shape[0]) for key, entry in tensors.items() if HEAD.search(key) and len(entry.shape) == 2]
    return found[-1] if found else None


def _made_as(config: Any) -> str:
    """Class that the checkpoint was saved from, by config.json; empty if it does not say."""
    named = getattr(config, "architectures", None) or [""]
    return str(named[0])
