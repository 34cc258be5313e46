"""Tokenizer, weights and chat template of a causal language model, and the split of its layers into trunk and top."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from stagealign.base.errors import BadData, Damaged, StagealignError
from stagealign.data.records import Pair
from stagealign.policy.checkpoints import READING, read_config, read_headers, read_tokenizer, unreadable, weights_of
from stagealign.policy.conversation import Conversation, TemplateArguments, joint_ids, plain_prompt, rendered_prompt
from stagealign.policy.layers import FROZEN, TRAINED, layer_count, norm_name
from stagealign.policy.logps import PairTokens, shared_prefix
from stagealign.policy.roles import check_causal
from stagealign.policy.templates import check_template, turn_end, turn_ends
from stagealign.store.record import remove


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with the tokenizer that belongs to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def head(self) -> nn.Module:
        """Maps the last hidden state, shape (..., d), to logits, shape (..., vocabulary)."""
        head: nn.Module = self.model.get_output_embeddings()
        return head

    @property
    def body(self) -> PreTrainedModel:
        """The decoder without its head."""
        return self.model.base_model

    def prompt_ids(
        self, prompt: Conversation, template: bool = True, arguments: TemplateArguments | None = None
    ) -> list[int]:
        """Token ids of a prompt (text or conversation) up to the start of the completion.

        Applies the tokenizer's chat template, with `arguments`, if it has one and `template` is True; else the prompt
        is plain text. Raises RefusedByTemplate for a conversation that the template does not accept.
        """
        text = self.prompt_text(prompt, template, arguments)
        return joint_ids(self.tokenizer, text, special=not self._templated(template))

    def _templated(self, template: bool = True) -> bool:
        return template and bool(self.tokenizer.chat_template)

    def prompt_text(
        self, prompt: Conversation, template: bool = True, arguments: TemplateArguments | None = None
    ) -> str:
        """A prompt as text up to the start of the completion. Raises RefusedByTemplate."""
        if self._templated(template):
            return rendered_prompt(self.tokenizer, prompt, arguments)
        return plain_prompt(prompt)

    @property
    def end(self) -> int:
        """Token that ends a text in training: the one that ends a turn in the chat template, else EOS."""
        end = turn_end(self.tokenizer, "policy")
        return int(self.tokenizer.eos_token_id) if end is None else end

    def completion_ids(self, completion: str, ended: bool, prompt: str = "") -> list[int]:
        """Token ids of text after a prompt, without those of the prompt, and `end` if the text `ended`.

        Prompt and text are tokenised together, as TRL does, so that a tokenizer of words puts no space mark before the
        text that a sample would not have. If a token spans both, the ids start with it.
        """
        whole, before = self._whole(prompt, completion, ended), self.prompt_ids(prompt)
        return whole[shared_prefix([before, whole]) :]

    def _whole(self, prompt: str, completion: str, ended: bool) -> list[int]:
        """Token ids of a prompt and the text after it."""
        text = self.prompt_text(prompt) + completion
        ids = joint_ids(self.tokenizer, text, special=not self._templated())
        return [*ids, self.end] if ended else ids

    def pair_tokens(self, pair: Pair, max_length: int) -> PairTokens:
        """Token ids of one pair; a completion is cut so that prompt and completion have at most `max_length` tokens.

        A completion with ids of its own has these: what was sampled is what is trained. Text is tokenised with its
        prompt; where a token spans both, the completion starts there. Line breaks that a template puts after the end
        token are not trained: a sample has ended before them.

        Raises BadData for a prompt that alone fills `max_length`. Source: TRL 1.16, `DPOTrainer._prepare_dataset`.
        """
        prompt, wholes = self.prompt_ids(pair.prompt), []
        for text, ids, cut_short in (
            (pair.chosen, pair.chosen_ids, pair.chosen_truncated),
            (pair.rejected, pair.rejected_ids, pair.rejected_truncated),
        ):
            wholes.append(self._whole(pair.prompt, text, not cut_short) if ids is None else [*prompt, *ids])
        start = shared_prefix([prompt, *wholes])
        if prompt and not start:
            raise BadData(f"prompt {pair.prompt[:60]!r}: one token spans it and a completion; end it with a line break")
        prompt, (chosen, rejected) = prompt[:start], (whole[start:] for whole in wholes)
        room = max_length - len(prompt)
        if room < 1:
            raise BadData(
                f"prompt {pair.prompt[:60]!r}...: {len(prompt)} tokens leave no room within max_length "
                f"{max_length}; drop the prompt or raise max_length"
            )
        cut = (len(chosen) > room) + (len(rejected) > room)
        return PairTokens(tuple(prompt), tuple(chosen[:room]), tuple(rejected[:room]), cut)


def load(folder: str | Path, revision: str | None = None, dtype: str = "float32") -> LanguageModel:
    """A model in evaluation mode with its tokenizer, from a local folder or the hub; safetensors only, no remote code.

    Raises StagealignError, before weights are read, if the checkpoint is no causal language model or cannot be used.
    """
    name = str(folder)
    config, tokenizer = check(name, revision)
    model = weights_of(AutoModelForCausalLM, name, config, revision, dtype)
    return LanguageModel(model.eval(), tokenizer)


def check(name: str, revision: str | None = None) -> tuple[Any, PreTrainedTokenizerBase]:
    """Config and tokenizer of a policy, from its folder or the hub, once both do for its weights; these stay unread.

    Raises StagealignError if the checkpoint is no causal language model, is incomplete or quantised without its
    library, if its tokenizer has ids outside of the embedding or no EOS token, or if its chat template fails.
    """
    config = read_config(name, revision, native=True)
    check_causal(name, config, {})
    check_causal(name, config, read_headers(name, config, revision))
    tokenizer = read_tokenizer(name, revision, config)
    check_tokenizer(tokenizer, name)
    return config, tokenizer


def on_gpu(lm: LanguageModel) -> LanguageModel:
    """The same object, its model moved to this machine's GPU if it has one."""
    if torch.cuda.is_available():
        lm.model.to("cuda")
    return lm


def tensor(path: Path, name: str) -> Tensor:
    """The tensor of that name in a safetensors file. Raises Damaged for a corrupt file."""
    from safetensors.torch import load_file

    try:
        return load_file(path)[name]
    except (OSError, SafetensorError, KeyError) as error:
        raise Damaged(f"{path}: damaged ({error}); rebuild it after {remove(path.parent)}") from error


def load_shape(folder: str | Path) -> LanguageModel:
    """A local checkpoint's tokenizer and architecture without weights, enough to compute token ids.

    Raises StagealignError if the checkpoint is no causal language model or its tokenizer cannot be used.
    """
    name = str(folder)
    config = read_config(name, native=True)
    check_causal(name, config, {})
    tokenizer = read_tokenizer(name, config=config)
    check_tokenizer(tokenizer, name)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        if (Path(folder) / "generation_config.json").exists():  # holds end tokens: see `end_ids`
            model.generation_config = GenerationConfig.from_pretrained(folder)
    except READING as error:
        raise unreadable(name, error) from error
    return LanguageModel(model, tokenizer)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str, chat: bool = False) -> None:
    """Gives a tokenizer without a pad token its EOS to pad with (padding is always masked).

    Raises StagealignError if there is no EOS token, without which no completion ends, and with `chat` also if there is
    no chat template.
    """
    if chat and not tokenizer.chat_template:
        raise StagealignError(
            f"checkpoint {name!r}: its tokenizer has no chat template; add `chat_template.jinja` to the folder"
        )
    if tokenizer.eos_token_id is None:
        raise StagealignError(
            f"checkpoint {name!r}: its tokenizer has no EOS token; set `eos_token` in tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template:
        check_template(tokenizer, name)


def check_ends(lm: LanguageModel, name: str) -> None:
    """Raises StagealignError if none of the tokens that end a turn in the chat template is one of `end_ids`."""
    ends = turn_ends(lm.tokenizer, name)
    if ends and not set(ends) & set(end_ids(lm)):
        ours, theirs = lm.tokenizer.eos_token, lm.tokenizer.convert_ids_to_tokens(ends[-1])
        shown = "".join(lm.tokenizer.convert_ids_to_tokens(ends))
        raise StagealignError(
            f"checkpoint {name!r}: its chat template ends a turn with {shown!r}, its EOS token is {ours!r}, so no "
            f"completion would end; set `eos_token` in tokenizer_config.json to {theirs!r}, or add {ends[-1]} to "
            "`eos_token_id` in generation_config.json"
        )


def end_ids(lm: LanguageModel) -> list[int]:
    """Token ids that end a completion: the tokenizer's EOS and those of the generation config within the vocabulary."""
    configured = getattr(lm.model.generation_config, "eos_token_id", None)
    others = configured if isinstance(configured, list) else [configured]
    rows = getattr(lm.model.config.get_text_config(), "vocab_size", None)
    within = {token for token in others if token is not None and 0 <= token < (rows or token + 1)}
    return sorted({lm.tokenizer.eos_token_id, *within})


def save(lm: LanguageModel, folder: Path, start: Path | None = None, top_layers: int | None = None) -> None:
    """Writes a checkpoint that `from_pretrained` reads.

    If only the top layers differ from the checkpoint in `start`, the weights are two shards, and the frozen shard is a
    hard link. A grid of policies then takes disk space only for trained weights.
    """
    if top_layers is None:
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        return
    from safetensors.torch import save_file

    depth = layer_count(lm.model)
    prefix, norm = lm.model.base_model_prefix, norm_name(lm.body)
    tops = (*(f"{prefix}.layers.{i}." for i in range(depth - top_layers, depth)), f"{prefix}.{norm}.")
    tied = set(lm.model.all_tied_weights_keys)
    state = {name: tensor.contiguous() for name, tensor in lm.model.state_dict().items() if name not in tied}
    trained = {name: tensor for name, tensor in state.items() if name.startswith(tops)}
    frozen = {name: tensor for name, tensor in state.items() if name not in trained}
    save_file(trained, folder / TRAINED, metadata={"format": "pt"})
    if start is not None and (start / FROZEN).exists():
        link(start / FROZEN, folder / FROZEN)
    else:
        save_file(frozen, folder / FROZEN, metadata={"format": "pt"})
    index = dict.fromkeys(trained, TRAINED) | dict.fromkeys(frozen, FROZEN)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}, indent=1)
    )
    lm.model.config.save_pretrained(folder)
    lm.model.generation_config.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)


def link(source: Path, target: Path) -> None:
    """Links `source` at `target`, or copies it if the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
