"""Writes a Llama model's GGUF file as a folder in the form of Hugging Face's, without a tokenizer."""

import json
import pathlib
import shutil

import gguf
import numpy as np

GROUP = 32  # of Q4_1
LAYER_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm",
               "output": "lm_head"}
# AWQ's order of eight values within 32 bits, the lowest bits first.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def bf16(model, folder):
    """All weights dequantized."""
    _write(folder, gguf.GGUFReader(model), {}, lambda tensor: None)


def awq(model, folder):
    """Matrices of Q4_1 stay at 4 bits: their minima are rounded to multiples of the scale, since AWQ
    has a zero point of 4 bits in their place. All others are dequantized."""
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True,
                "version": "gemm", "modules_to_not_convert": ["lm_head"]}
    _write(folder, gguf.GGUFReader(model), {"quantization_config": settings},
           lambda tensor: q4_1_parts(tensor.data)
           if tensor.tensor_type == gguf.GGMLQuantizationType.Q4_1 else None)


def q4_1_parts(data):
    """4-bit values [rows, columns], and scales and zero points [rows, groups] of rows of Q4_1 blocks:
    scale and minimum of 16 bits each, then the low halves of 16 bytes before their high halves."""
    blocks = data.reshape(data.shape[0], -1, 4 + GROUP // 2)
    scales, minima = (blocks[:, :, begin:begin + 2].copy().view(np.float16)[:, :, 0]
                      .astype(np.float32) for begin in (0, 2))
    nibbles = blocks[:, :, 4:]
    values = np.concatenate([nibbles & 15, nibbles >> 4], axis=2).reshape(data.shape[0], -1)
    quotients = np.divide(-minima, scales, out=np.zeros_like(scales), where=scales != 0)
    return values, scales, np.clip(np.round(quotients), 0, 15).astype(np.uint8)


def awq_packed(values):
    """4-bit values [rows, columns] as 32-bit numbers [rows, columns / 8]."""
    groups = values.astype(np.uint32).reshape(values.shape[0], -1, 8)
    packed = np.zeros(groups.shape[:2], np.uint32)
    for position, index in enumerate(AWQ_ORDER):
        packed |= groups[:, :, index] << np.uint32(4 * position)
    return packed.view(np.int32)


def with_halves_apart(rows, heads):
    """GGUF holds a head's rows of queries and keys in pairs that are rotated together; here the first
    of all pairs come before the second of all."""
    shape = rows.shape
    return rows.reshape(heads, shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(shape)


def _write(folder, file, more_config, split):
    """`split` gives a tensor's values, scales and zero points, or None for one to be dequantized."""
    # Only here: large.
    import torch
    from safetensors.torch import save_file

    def bf16_tensor(array):
        return torch.from_numpy(np.array(array, order="C")).to(torch.bfloat16)

    heads = {"attn_q": _field(file, "attention.head_count"),
             "attn_k": _field(file, "attention.head_count_kv")}
    weights = {}
    for tensor in file.tensors:
        parts = tensor.name.split(".")
        kind = parts[2] if parts[0] == "blk" else parts[0]
        name = (f"model.layers.{parts[1]}.{LAYER_NAMES[kind]}" if parts[0] == "blk"
                else OTHER_NAMES[kind])
        ordered = ((lambda rows, count=heads[kind]: with_halves_apart(rows, count))
                   if kind in heads else lambda rows: rows)
        if (quantized := split(tensor)) is None:
            rows = gguf.dequantize(tensor.data, tensor.tensor_type)
            weights[name + ".weight"] = bf16_tensor(ordered(rows))
        else:
            values, scales, zero_points = (ordered(rows).T for rows in quantized)
            weights[name + ".qweight"] = torch.from_numpy(awq_packed(values))
            weights[name + ".qzeros"] = torch.from_numpy(awq_packed(zero_points))
            weights[name + ".scales"] = bf16_tensor(scales)
    # Under its name only when it is whole.
    part = pathlib.Path(str(folder) + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
    config = _config(file, tied="lm_head.weight" not in weights) | more_config
    (part / "config.json").write_text(json.dumps(config, indent=2))
    part.rename(folder)


def _config(file, tied):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": _field(file, "embedding_length"),
        "intermediate_size": _field(file, "feed_forward_length"),
        "num_hidden_layers": _field(file, "block_count"),
        "num_attention_heads": _field(file, "attention.head_count"),
        "num_key_value_heads": _field(file, "attention.head_count_kv"),
        "max_position_embeddings": _field(file, "context_length"),
        "rms_norm_eps": _field(file, "attention.layer_norm_rms_epsilon"),
        "rope_theta": _field(file, "rope.freq_base"),
        "vocab_size": _field(file, "vocab_size"),
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }


def _field(file, name):
    return file.fields["llama." + name].contents()

