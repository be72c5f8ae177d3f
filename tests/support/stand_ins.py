"""Tiny stand-ins of what profiles name on the hub.

The same classes and schemas, random weights, local folders.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

UKRAINIAN = "абвгґдеєжзиіїйклмнопрстуфхцчшщьюяАБВГҐДЕЄЖЗИІЇЙКЛМНОПРСТУФХЦЧШЩЬЮЯ’«»—"
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
GEMMA: dict[str, Any] = {
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 64,
    "layer_types": ["sliding_attention", "full_attention"],
}

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def causal(
    folder: Path, architecture: str = "gemma", letters: str = "", template: bool = True
) -> None:
    """A causal language model: gemma, gemma_with_images (as Gemma 3 from 4B on), llama or qwen.

    Its tokenizer knows ASCII and `letters`, one token each.
    """
    import transformers

    from regrpo.core.tokenizers import character_tokenizer

    tokenizer = character_tokenizer(list(letters))
    if not template:
        tokenizer.chat_template = None  # a pretrained base has none
    classes, own = {
        "gemma": (("Gemma3TextConfig", "Gemma3ForCausalLM"), GEMMA),
        "llama": (("LlamaConfig", "LlamaForCausalLM"), {"num_key_value_heads": 1}),
        "qwen": (("Qwen3Config", "Qwen3ForCausalLM"), {"num_key_value_heads": 1, "head_dim": 16}),
    }[architecture.removesuffix("_with_images")]
    config, model = (getattr(transformers, name) for name in classes)
    transformers.set_seed(0)
    sizes = config(**SMALL, **own, vocab_size=-(-len(tokenizer) // 8) * 8)
    if architecture == "gemma_with_images":
        model = transformers.Gemma3ForConditionalGeneration
        sizes = transformers.Gemma3Config(
            text_config=sizes, vision_config=VISION, mm_tokens_per_image=4
        )
    model(sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def classifier(folder: Path, labels: tuple[str, ...], seed: int = 0, **config: Any) -> None:
    """An XLM-RoBERTa sequence classifier with these labels; its values differ by text."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        PreTrainedTokenizerFast,
        XLMRobertaConfig,
        XLMRobertaForSequenceClassification,
        set_seed,
    )

    tokens = ["<s>", "<pad>", "</s>", "<unk>", *map(chr, range(32, 127)), *UKRAINIAN]
    core = Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), behavior="isolated")
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        model_max_length=512,
    )
    set_seed(seed)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    names = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    model = XLMRobertaForSequenceClassification(
        XLMRobertaConfig(
            vocab_size=len(tokens),
            max_position_embeddings=514,
            type_vocab_size=1,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            initializer_range=0.5,
            **sizes,
            **names,
            **config,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def gsm8k_row(index: int) -> dict[str, str]:
    """One row as GSM8K writes it: calculator notes, #### and the number."""
    bought, price = index % 17 + 2, index // 17 + 3
    total = bought * price
    return {
        "question": f"Mia buys {bought} pens at {price} dollars each in shop {index}. "
        "How many dollars does she pay?",
        "answer": f"She pays {bought} * {price} = <<{bought}*{price}={total}>>{total} dollars.\n"
        f"#### {total:,}",
    }


def gsm8k(folder: Path) -> None:
    """train.jsonl and test.jsonl with GSM8K's own columns."""
    for name, rows in (("train", range(0, 80)), ("test", range(100, 116))):
        lines = (json.dumps(gsm8k_row(index)) + "\n" for index in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))


PLACES = ("Києві", "Львові", "Одесі", "Харкові", "Дніпрі", "Полтаві", "Луцьку", "Рівному")
NEWS = (
    "відкрили міст",
    "ремонтують школу",
    "збудували парк",
    "провели виставку",
    "замінили трамваї",
)


def xlsum_row(index: int) -> dict[str, str]:
    """One row as XL-Sum writes it; every fourth article is a long one."""
    place, news = PLACES[index % len(PLACES)], NEWS[index // len(PLACES) % len(NEWS)]
    story = f"У {place} {news}. Про це сказали {index} мешканців міста. "
    return {
        "id": f"news-{index}",
        "url": f"https://www.example.org/ukrainian/news-{index}",
        "title": f"У {place} {news}",
        "summary": f"У {place} {news}, кажуть {index} мешканців.",
        "text": story * (12 if index % 4 == 0 else 1) + f"Кінець статті {index}.",
    }


def xlsum(folder: Path, train: int = 80, evaluation: int = 12) -> None:
    """train.parquet and test.parquet with XL-Sum's own columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, rows in (("train", range(train)), ("test", range(1000, 1000 + evaluation))):
        pq.write_table(
            pa.Table.from_pylist([xlsum_row(index) for index in rows]), folder / f"{name}.parquet"
        )
