"""A GGUF file is read as the model that it was written from."""

import re
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from kleash.errors import InputError
from kleash.models.hub import load_language_model, save_language_model
from tests.train.small import LETTERS, save_small_model

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""From transformers' names to those of GGUF."""


def gguf_name(name: str) -> str:
    stem, _, end = name.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    return f"blk.{layer[1]}.{NAMES[layer[2]]}.{end}" if layer else f"{NAMES[stem]}.{end}"


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries and keys in the order that llama.cpp rotates them in."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def save_gguf(model: Any, path: Path) -> Path:
    writer, config = gguf.GGUFWriter(path, "llama"), model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<e>", "<u>", *LETTERS[:-1], "ab"])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(1)
    for name, weight in model.state_dict().items():
        turned = re.search(r"[qk]_proj", name) is not None
        rows = interleaved(weight, config.num_attention_heads) if turned else weight
        writer.add_tensor(gguf_name(name), rows.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_it_is_the_model_that_it_was_written_from(tmp_path: Path) -> None:
    original = AutoModelForCausalLM.from_pretrained(save_small_model(tmp_path / "small")).eval()
    loaded = load_language_model(str(save_gguf(original, tmp_path / "small.gguf")))
    ids = torch.tensor([[2, 3, 4, 5]])
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model(input_ids=ids).logits, original(input_ids=ids).logits
        )
    assert loaded.eos_ids == [0]
    save_language_model(loaded, tmp_path / "plain", "")  # as any other: it does not remember
    assert load_language_model(str(tmp_path / "plain")).digest() == loaded.digest()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(100)])
def test_a_broken_file_is_bad_input(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises(InputError, match="cannot load"):
        load_language_model(str(tmp_path / "broken.gguf"))


def test_a_truncated_file_is_bad_input(tmp_path: Path) -> None:
    original = AutoModelForCausalLM.from_pretrained(save_small_model(tmp_path / "small"))
    whole = save_gguf(original, tmp_path / "small.gguf").read_bytes()
    for kept in (len(whole) // 2, len(whole) - 200):
        (tmp_path / "cut.gguf").write_bytes(whole[:kept])
        with pytest.raises(InputError, match="cannot load"):
            load_language_model(str(tmp_path / "cut.gguf"))
