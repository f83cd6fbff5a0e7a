"""Writes a llama of a few million random weights as GGUF: the architecture in config.json, as Headway reads it.

    python tiny_model.py MODEL.gguf

The weights are drawn from a fixed seed: the same file on every machine. What it says is noise; what it costs is real.
"""

from __future__ import annotations

import itertools
import json
import string
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

CONFIG = json.loads((Path(__file__).parent / "config.json").read_bytes())
LAYERS, HIDDEN, MLP = CONFIG["num_hidden_layers"], CONFIG["hidden_size"], CONFIG["intermediate_size"]
HEADS, KV_HEADS, HEAD_DIM = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], CONFIG["head_dim"]
VOCAB = CONFIG["vocab_size"]  # `headway bench` sends token ids from 1,000 to 9,999
SEED = 7


def write_gguf(path: Path) -> None:
    """Weights small enough for logits to stay near each other: any token may come, none is certain."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny random llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONFIG["max_position_embeddings"])
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    add_tokens(writer)
    for name, values in tensors():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokens(writer: gguf.GGUFWriter) -> None:
    """Three special tokens, all of ASCII and words of four letters: every token is whole text, so each is one event."""
    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256]
    letters = [*string.ascii_letters, *string.digits, *string.punctuation, "\N{LOWER ONE EIGHTH BLOCK}"]
    words = ("".join(word) for word in itertools.product(string.ascii_lowercase, repeat=4))
    tokens += [*letters, *itertools.islice(words, VOCAB - len(tokens) - len(letters))]
    types += [kinds.NORMAL] * (VOCAB - len(types))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_scores([-float(place) for place in range(VOCAB)])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")


def tensors() -> Iterator[tuple[str, np.ndarray]]:
    """Name and values of every tensor, float32[out, in]."""
    rng = np.random.default_rng(SEED)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    ones, kv = np.ones(HIDDEN, np.float32), KV_HEADS * HEAD_DIM
    yield "token_embd.weight", matrix(VOCAB, HIDDEN)
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        yield at + "attn_norm.weight", ones
        yield at + "attn_q.weight", matrix(HEADS * HEAD_DIM, HIDDEN)
        yield at + "attn_k.weight", matrix(kv, HIDDEN)
        yield at + "attn_v.weight", matrix(kv, HIDDEN)
        yield at + "attn_output.weight", matrix(HIDDEN, HEADS * HEAD_DIM)
        yield at + "ffn_norm.weight", ones
        yield at + "ffn_gate.weight", matrix(MLP, HIDDEN)
        yield at + "ffn_up.weight", matrix(MLP, HIDDEN)
        yield at + "ffn_down.weight", matrix(HIDDEN, MLP)
    yield "output_norm.weight", ones
    yield "output.weight", matrix(VOCAB, HIDDEN)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tiny_model.py MODEL.gguf")
    write_gguf(Path(sys.argv[1]))
