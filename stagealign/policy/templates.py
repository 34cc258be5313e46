"""Chat templates of tokenizers: what can be rendered, what a turn ends with, and what has no template at all."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from stagealign.base.errors import StagealignError

USER = [{"role": "user", "content": "Hello"}]
ANSWER = {"role": "assistant", "content": "stagealign"}
IN_PARTS = (
    "{%- set lifted = namespace(turns=[]) -%}{%- for turn in messages -%}"
    "{%- set lifted.turns = lifted.turns + "
    "[dict(turn, content=[{'type': 'text', 'text': turn['content']}]) if turn['content'] is string else turn] -%}"
    "{%- endfor -%}{%- set messages = lifted.turns %}\n"
)
"""Start of a template that reads contents as lists of parts: texts become lists of one part. The newline is trimmed."""


def prepare_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Has the tokenizer's chat template take texts, where it is made for contents in parts (images beside text).

    Raises StagealignError for several named templates without a default, and for one that leaves out what is said.
    """
    template = tokenizer.chat_template
    if not template:
        return
    if isinstance(template, Mapping) and "default" not in template:
        names = ", ".join(map(repr, sorted(template)))
        raise StagealignError(
            f"checkpoint {name!r}: its tokenizer has chat templates named {names} and no default; save the one to use "
            "as chat_template.jinja in its folder"
        )
    fault = _fault(tokenizer, name)
    if fault is None:
        return
    lifted = {**template, "default": IN_PARTS + template["default"]} if isinstance(template, Mapping) else None
    tokenizer.chat_template = lifted or IN_PARTS + template
    if _fault(tokenizer, name) is not None:
        tokenizer.chat_template = template
        raise fault


def check_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises StagealignError for a chat template that fails, or that has no generation prompt and needs one.

    A template whose user turn ends in a mark that starts the answer (`[/INST]`) needs no generation prompt.
    """
    prepare_template(tokenizer, name)
    bare, full = rendered(tokenizer, name, USER), rendered(tokenizer, name, [*USER, ANSWER])
    prompt = rendered(tokenizer, name, USER, add_generation_prompt=True)
    follows = full.startswith(prompt) and full[len(prompt) :].lstrip().startswith(ANSWER["content"])
    if prompt == bare and not follows:
        raise StagealignError(
            f"checkpoint {name!r}: its chat template has no generation prompt, so a policy would continue the user's "
            "turn; add one under `{% if add_generation_prompt %}` in chat_template.jinja"
        )


def turn_ends(tokenizer: PreTrainedTokenizerBase, name: str) -> list[int]:
    """Ids of the special tokens that the chat template puts after an answer, in order; the BOS of a next turn is none.

    Some templates close an answer and its turn with a token each (`<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`).
    """
    if not tokenizer.chat_template:
        return []
    after = rendered(tokenizer, name, [*USER, ANSWER]).rpartition(ANSWER["content"])[2]
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    special |= set(tokenizer.all_special_ids)
    ends: list[int] = []
    for token in tokenizer(after.strip(), add_special_tokens=False).input_ids:
        opens = token == tokenizer.bos_token_id != tokenizer.eos_token_id
        if token not in special or (opens and ends):
            break
        ends.append(int(token))
    return ends


def turn_end(tokenizer: PreTrainedTokenizerBase, name: str) -> int | None:
    """Id of the special token that ends a turn: the EOS if it is one of `turn_ends`, else the last; None if none."""
    ends = turn_ends(tokenizer, name)
    return tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[-1] if ends else None


def rendered(tokenizer: PreTrainedTokenizerBase, name: str, turns: Sequence[Mapping[str, str]], **options: bool) -> str:
    """Text of a conversation by the chat template. Raises StagealignError, naming the checkpoint, where it fails."""
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(turns), tokenize=False, **options))
    except (TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StagealignError(
            f"checkpoint {name!r}: its chat template fails ({first[:200]}); correct chat_template.jinja"
        ) from error


def _fault(tokenizer: PreTrainedTokenizerBase, name: str) -> StagealignError | None:
    """Why the template does not say what both turns of a conversation of texts say; None if it does."""
    try:
        text = rendered(tokenizer, name, [*USER, ANSWER])
    except StagealignError as error:
        return error
    if USER[0]["content"] in text and ANSWER["content"] in text:
        return None
    return StagealignError(
        f"checkpoint {name!r}: its chat template leaves out what user and assistant say, as text and as a list of "
        "parts; correct chat_template.jinja"
    )
