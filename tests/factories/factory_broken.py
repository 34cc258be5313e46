"""Checkpoints with one fault each, as people have them: what is wrong, who opens it, and what must be said."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import factory_pairrm
import factory_rewards
from factory_models import build_tiny

POLICY, REWARD, PAIRRM, JUDGE = OPENERS = ("policy", "reward", "pairrm", "judge")
"""Who opens a checkpoint: the judge is a local one, a causal model as a policy is."""
ANY, CAUSAL, CHAT = OPENERS, (POLICY, JUDGE), (POLICY, JUDGE, REWARD)


@dataclass(frozen=True)
class Broken:
    """One kind of fault."""

    key: str
    make: Callable[[Path], object]
    """Breaks a whole checkpoint in a folder; returns another name to open, or None."""
    says: str
    """Pattern of the message: what was found, and what to do."""
    openers: tuple[str, ...] = ANY


def whole(folder, opener):
    """Saves a tiny checkpoint that this opener takes."""
    if opener == REWARD:
        factory_rewards.save(folder, chat=True)
    elif opener == PAIRRM:
        oracle = factory_pairrm.build()
        oracle.model.save_pretrained(folder)
        oracle.tokenizer.save_pretrained(folder)
    else:
        lm = build_tiny(chat=True)
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)


def edit(file, **changes):
    """Changes fields of a JSON file; None takes one out."""
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({key: value for key, value in (known | changes).items() if value is not None}))


def config(**changes):
    return lambda folder: edit(folder / "config.json", **changes)


def written(file, content):
    """Puts a file into the folder."""
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / file).write_bytes(data) and None


def without(*patterns):
    def make(folder):
        for path in [path for pattern in patterns for path in folder.glob(pattern)]:
            path.unlink()

    return make


def both(*makes):
    def make(folder):
        for one in makes:
            one(folder)

    return make


def header(change):
    """Rewrites the header of the weights; their bytes stay."""

    def make(folder):
        file = folder / "model.safetensors"
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        known = json.loads(data[8 : 8 + length])
        changed = json.dumps(change(known) or known).encode()
        file.write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + length :])

    return make


def tensors(change):
    """Changes the tensors of the weights."""

    def make(folder):
        from safetensors.torch import load_file, save_file

        known = load_file(folder / "model.safetensors")
        save_file(change(known) or known, folder / "model.safetensors", {"format": "pt"})

    return make


def retyped(known):
    """Calls the float weights packed bytes, as a file of a quantised model has them."""
    name = next(key for key in known if key.endswith("weight") and len(known[key]["shape"]) == 2)
    rows, width = known[name]["shape"]
    known[name] |= {"dtype": "U8", "shape": [rows, 4 * width]}


def emptied(known):
    import torch

    return {**known, next(iter(known)): torch.empty(0)}


def adapter(base="owner/base", files=("config.json", "*.safetensors"), **changes):
    """An adapter's folder: no model, or one beside it."""
    known = {"peft_type": "LORA", "r": 8, "task_type": "CAUSAL_LM", "base_model_name_or_path": base} | changes
    return both(without(*files), lambda folder: edit(folder / "adapter_config.json", **known))


def parent(*names, kind="config.json"):
    """A folder with checkpoints below; the folder itself has none."""

    def make(folder):
        for name in names:
            (folder / name).mkdir(parents=True)
            (folder / name / kind).write_text("{}")
        without("config.json", "*.safetensors")(folder)

    return make


def sharded(shard):
    """An index that names this shard beside the one that is there."""

    def make(folder):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        index = {"weight_map": {"a.weight": "model-00001-of-00002.safetensors", "b.weight": shard}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return make


def gguf_only(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "tiny-Q4_0.gguf").write_bytes(b"GGUF")


def gguf_file(folder):
    gguf_only(folder)
    return folder / "tiny-Q4_0.gguf"


def misspelt(folder):
    return folder.parent / (folder.name + "e")


def pickled(folder):
    without("*.safetensors")(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def quantised(method, **fields):
    return config(quantization_config={"quant_method": method, **fields})


def few_rows(folder):
    """Cuts the embedding below the tokenizer's last ids, as an added token without a resized embedding leaves it."""
    known = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", vocab_size=known["vocab_size"] - 20)


def template(text):
    return written("chat_template.jinja", text)


def named_templates(folder):
    (folder / "chat_template.jinja").unlink()
    extra = folder / "additional_chat_templates"
    extra.mkdir()
    for name in ("rag", "tool_use"):
        (extra / f"{name}.jinja").write_text("{{ messages }}")


def encoder(folder):
    """An encoder's classifier in this place, with a language model's name."""
    shutil.rmtree(folder)
    factory_rewards.save(folder, "bert")
    edit(folder / "config.json", architectures=["BertForMaskedLM"])


def of_role(opener):
    def make(folder):
        shutil.rmtree(folder)
        whole(folder, opener)

    return make


def seq2seq(folder):
    from transformers import AutoModelForSeq2SeqLM, BartConfig

    size = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "encoder_attention_heads": 2}
    size |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 264}
    without("*.safetensors", "config.json")(folder)
    AutoModelForSeq2SeqLM.from_config(BartConfig(**size)).save_pretrained(folder)


REMOTE = {"AutoModelForCausalLM": "m.OwnLlama", "AutoModelForSequenceClassification": "m.OwnHead"}
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "*.model", "vocab*", "spm*")
TABLE = (
    Broken("no such folder", misspelt, r"no such folder; nearest: c$"),
    Broken("no name", lambda folder: " ", "no name; name a local folder or a hub id"),
    Broken("hub id offline", lambda folder: "owner/misspelt", "neither a folder here nor in the hub's cache"),
    Broken("path of three", lambda folder: "a/b/c", "no such folder"),
    Broken("a file", lambda folder: folder / "config.json", r"a file, not a folder; name its folder: .*c$"),
    Broken("GGUF file", gguf_file, r"GGUF \(tiny-Q4_0.gguf\).*python -c .*GgufConfig"),
    Broken("GGUF folder", gguf_only, r"GGUF \(tiny-Q4_0.gguf\).*python -c .*GgufConfig"),
    Broken("adapter", adapter(), r"merge it into its base model 'owner/base' and name 'c-merged': python -c .*peft"),
    Broken("adapter of a head", adapter(task_type="SEQ_CLS"), "AutoModelForSequenceClassification.*num_labels=1"),
    Broken("adapter without base", adapter(base=None), "its base model is not named; merge it"),
    Broken("tuned prompt", adapter(peft_type="PROMPT_TUNING"), "which cannot be merged into weights; train a LoRA"),
    Broken("adapter beside a model", adapter(files=()), "move that file away to use the whole model beside it"),
    Broken("checkpoints", parent("checkpoint-20", "checkpoint-100"), r"name the newest: .*checkpoint-100$"),
    Broken("adapters", parent("checkpoint-9", "checkpoint-8", kind="adapter_config.json"), "newest: .*checkpoint-9$"),
    Broken("deep checkpoints", parent("global_step_7/actor/huggingface"), r"newest: .*global_step_7/actor/hugg"),
    Broken("hub cache", parent("snapshots/0123abc"), r"name the newest: .*snapshots/0123abc$"),
    Broken(
        "config above checkpoints",
        both(without("*.safetensors"), lambda folder: (folder / "checkpoint-3").mkdir(),
             lambda folder: shutil.copy(folder / "config.json", folder / "checkpoint-3")),
        r"without weights of its own; name the newest checkpoint in it: .*checkpoint-3$",
    ),
    Broken(
        "DeepSpeed",
        both(without("*.safetensors"), lambda folder: (folder / "global_step10").mkdir()),
        "DeepSpeed's shards.*python -m deepspeed.utils.zero_to_fp32 .*--safe_serialization",
    ),
    Broken("no config", without("config.json"), "a folder without config.json; name the folder"),
    Broken("maker's format", both(without("config.json"), written("params.json", "{}")), "in its maker's own format"),
    Broken("config cut", written("config.json", '{"model_type": "lla'), "name a local folder|JSON"),
    Broken("config a list", written("config.json", "[1]"), "name a local folder"),
    Broken("no type", config(model_type=None), "has no model_type; take config.json"),
    Broken("unknown type", config(model_type="llamma"), "'llamma', which transformers 5.*nearest: llama"),
    Broken("wrong dtype", config(dtype="float17"), "dtype 'float17', which torch does not know; write float32"),
    Broken("short dtype", config(torch_dtype="bf16", dtype=None), "torch_dtype 'bf16'.*write bfloat16"),
    Broken("wrong size", config(hidden_size="wide"), "hidden_size"),
    Broken("other shapes", config(intermediate_size=32), "do not have the shapes that its config.json asks for"),
    Broken("other weights", config(transformers_weights="../x/model.safetensors"), "delete that field"),
    Broken("attention from the hub", config(attn_implementation="owner/kernel"), "attention code from the hub"),
    Broken("own code", config(auto_map=REMOTE), "asks to run code of its own"),
    Broken("own type", config(model_type="own", auto_map={"AutoConfig": "c.Own"}), "asks to run code of its own"),
    Broken("own tokenizer", both(without("tokenizer.json"), lambda folder: edit(
        folder / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["t.Own", None]})),
        "without a tokenizer|code of its own|no vocabulary|Couldn't instantiate"),
    Broken("no tokenizer", without(*TOKENIZER), "a folder without a tokenizer.*copy the tokenizer's files"),
    Broken("no vocabulary", without("tokenizer.json", "*.model", "vocab*", "spm*"), "a folder without a tokenizer"),
    Broken("tokenizer cut", written("tokenizer.json", '{"version": "1.0", "mod'), "checkpoint"),
    Broken("tokenizer too large", few_rows, r"tokens that the embedding of \d+ rows does not have, such as '"),
    Broken("pickle", pickled, r"its weights are a pickle \(pytorch_model.bin\).*convert its tensors"),
    Broken("no weights", without("*.safetensors"), "a folder without weights"),
    Broken("absent shard", sharded("model-00002-of-00002.safetensors"), "names 1 of 2 shards that are not there"),
    Broken("shard elsewhere", sharded("../model.safetensors"), "only safetensors in its folder are read"),
    Broken("index cut", both(sharded("x"), written("model.safetensors.index.json", "{")), "cannot be read .*again"),
    Broken("other name", lambda folder: (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
           and None, "neither model.safetensors nor named by"),
    Broken("empty file", written("model.safetensors", b""), "model.safetensors is empty; download it again"),
    Broken("no tensors", written("model.safetensors", (2).to_bytes(8, "little") + b"{}"), "its safetensors hold no t"),
    Broken("empty tensor", tensors(emptied), "1 tensors without content, such as .*gather the weights"),
    Broken("damaged header", header(lambda known: {**known, "x": {"dtype": 3}}), "has a damaged header"),
    Broken("missing weight", tensors(lambda known: dict(list(known.items())[1:])), "1 weights of .* are missing"),
    Broken("packed weights", header(retyped), "1 weights are stored as U8.*has no quantization_config"),
    Broken("bitsandbytes", quantised("bitsandbytes", load_in_4bit=True), "`pip install bitsandbytes`, or name the unq"),
    Broken("old bitsandbytes", config(quantization_config={"load_in_8bit": True}), "pip install bitsandbytes"),
    Broken("GPTQ", quantised("gptq", bits=4, group_size=128), "quantised by gptq.*pip install gptqmodel optimum"),
    Broken("AWQ", quantised("awq", bits=4, version="gemm"), "quantised by awq.*pip install gptqmodel"),
    Broken("HQQ", quantised("hqq"), "pip install hqq"),
    Broken("compressed", quantised("compressed-tensors", format="pack-quantized"), "pip install compressed-tensors"),
    Broken("FP8", quantised("fp8", activation_scheme="dynamic"), "quantised by fp8, which is read on a GPU only"),
    Broken("torchao", quantised("torchao", quant_type={"default": {}}), "pip install torchao"),
    Broken("unknown method", quantised("own_bits"), "quantised by 'own_bits', which is not read; name the unq"),
    Broken("no EOS", lambda folder: edit(folder / "tokenizer_config.json", eos_token=None), "has no EOS token", CAUSAL),
    Broken("template fails", template("{{ raise_exception('no') }}"), r"chat template fails \(no\); correct", CHAT),
    Broken("template damaged", template("{% for m in"), "chat template fails", CHAT),
    Broken("template indexes", template("{{ messages[7]['content'] }}"), "chat template fails", CHAT),
    Broken("template leaves out", template("{% for m in messages %}{{ m.role }}{% endfor %}"), "leaves out what", CHAT),
    Broken("named templates", named_templates, "named 'rag', 'tool_use' and no default; save the one to use", CHAT),
    Broken("reward as policy", of_role(REWARD), r"a classifier .Llama.*not a policy.*--oracle reward:", CAUSAL),
    Broken("nameless reward as policy", both(of_role(REWARD), config(architectures=None)),
           "a classifier .score.weight., not a policy", CAUSAL),
    Broken("policy as reward", of_role(POLICY), "LlamaForCausalLM, a language model.*one logit", (REWARD,)),
    Broken("nameless policy as reward", both(of_role(POLICY), config(architectures=None)), "num_labels=2", (REWARD,)),
    Broken("three rows", lambda folder: factory_rewards.save(folder, labels=3), "score.weight has 3 rows", (REWARD,)),
    Broken("policy as PairRM", of_role(POLICY), "of type 'llama', PairRM is 'deberta-v2'", (PAIRRM,)),
    Broken("encoder", encoder, "of type 'bert', an encoder that reads ahead", CAUSAL),
    Broken("encoder with a decoder", seq2seq, "of type 'bart', an encoder with a decoder; a policy is", CAUSAL),
    Broken("encoder as reward", both(encoder, tensors(lambda known: {
        key: one for key, one in known.items() if not key.startswith("classifier")})), "are missing", (REWARD,)),
    Broken("no causal type", config(model_type="clip"), "'clip'.*has no c", CHAT),
)  # fmt: skip
"""Each kind of fault, and who meets it."""
CASES = [(one, opener) for one in TABLE for opener in one.openers]
