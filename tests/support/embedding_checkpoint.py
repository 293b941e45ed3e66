"""A random checkpoint of Qwen3-Embedding's shape: saved without a head, with a tokenizer that ends each text."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from support.checkpoints import randomise

END = "<|endoftext|>"
SIZES = {
    "hidden_size": 96,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 150,
    "num_hidden_layers": 3,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}
CORPUS = (
    "The cat sat on the mat. 今天天气很好，我们去公园散步吧。"
    "Instruct: retrieve passages that answer the query\nQuery: how?"
)


def save_embedding_checkpoint(folder: Path, *, tied: bool = True, dtype: torch.dtype = torch.float32) -> Path:
    """Save model and tokenizer as users of transformers would: the bare model, whose names have no `model.`."""
    tokenizer = _tokenizer()
    config = transformers.Qwen3Config(
        **SIZES, vocab_size=tokenizer.get_vocab_size(), tie_word_embeddings=tied, eos_token_id=None, bos_token_id=None
    )
    model = transformers.AutoModel.from_config(config).eval()
    randomise(model)
    model.to(dtype).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END).save_pretrained(
        folder
    )
    return folder


def reference_vectors(folder: Path, texts: list[str]) -> torch.Tensor:
    """Embed by the model card's recipe, one text at a time, in float32."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1] for text in texts]
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def _tokenizer() -> tokenizers.Tokenizer:
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=[END], show_progress=False)
    bpe.train_from_iterator([CORPUS], trainer)
    end = bpe.token_to_id(END)
    bpe.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, end)]),
        ]
    )
    return bpe
