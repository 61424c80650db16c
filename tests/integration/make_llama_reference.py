#!/usr/bin/env python3
"""Writes llama_reference.json: what llama.cpp makes of the quickstart's model.

usage: make_llama_reference.py MODEL.gguf PEER_DIR >llama_reference.json

PEER_DIR is what tests/bench/fetch_peer printed; needs numpy. For each prompt: its token ids, the 64
tokens that follow greedily, and how far each one's logit is ahead of the second best. For each text:
its tokens and each one's log-probability.
"""

import ctypes
import json
import os
import pathlib
import sys

import numpy

GREEDY_TOKENS = 64
TEXT_TOKENS = 512
CHOICES = 6
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    'def gcd(a, b):\n    """Return the greatest common divisor."""\n',
    "Question: A train covers 90 miles in 1.5 hours. What is its average speed?\nAnswer:",
    "2, 3, 5, 7, 11, 13,",
    "The planets of the solar system, in order:\n1. Mercury\n2.",
    "Übersetze ins Englische: Der schnelle braune Fuchs springt über den faulen Hund.\n",
    "<html>\n<head>\n\t<title>Hello, world!</title>\n</head>\n<body>\n",
    "To make a cup of tea, first",
    "SELECT name, COUNT(*) AS n\nFROM orders\nJOIN customers ON",
    "今日はとても良い天気です。",
    "<|im_start|>user\nWhat is the boiling point of water?<|im_end|>\n<|im_start|>assistant\n",
]
# Each text begins with one of these.
OPENINGS = ["The history of", "In this chapter we", "Dear Sir,", "import numpy as np\n"]


class ContextParams(ctypes.Structure):  # as in tests/bench/llama_library.h
    _fields_ = (
        [(name, ctypes.c_uint32) for name in "n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max n_outputs_max_per_seq".split()]
        + [(name, ctypes.c_int32) for name in "n_threads n_threads_batch ctx_type rope pooling attention flash_attn".split()]
        + [(f"float{i}", ctypes.c_float) for i in range(6)]
        + [("yarn_orig_ctx", ctypes.c_uint32), ("defrag_thold", ctypes.c_float)]
        + [("cb_eval", ctypes.c_void_p), ("cb_eval_user_data", ctypes.c_void_p)]
        + [("type_k", ctypes.c_int32), ("type_v", ctypes.c_int32)]
        + [("abort_callback", ctypes.c_void_p), ("abort_callback_data", ctypes.c_void_p)]
        + [(f"bool{i}", ctypes.c_bool) for i in range(6)]
        + [("samplers", ctypes.c_void_p), ("n_samplers", ctypes.c_size_t), ("ctx_other", ctypes.c_void_p)]
    )


class ModelParams(ctypes.Structure):
    _fields_ = [("head", ctypes.c_byte * 74), ("use_extra_bufts", ctypes.c_bool), ("tail", ctypes.c_byte * 5)]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


class Llama:
    """A model and one sequence of tokens."""

    def __init__(self, model, directory):
        path = next(p for p in sorted(pathlib.Path(directory).rglob("libllama.*")))
        self.lib = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        for name, result in {
            "llama_model_default_params": ModelParams,
            "llama_model_load_from_file": ctypes.c_void_p,
            "llama_context_default_params": ContextParams,
            "llama_init_from_model": ctypes.c_void_p,
            "llama_model_get_vocab": ctypes.c_void_p,
            "llama_get_memory": ctypes.c_void_p,
            "llama_get_logits_ith": ctypes.POINTER(ctypes.c_float),
            "llama_batch_init": Batch,
        }.items():
            getattr(self.lib, name).restype = result
        self.quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        self.lib.llama_log_set(self.quiet, None)
        self.lib.ggml_backend_load_all_from_path(str(path.parent).encode())
        model_params = self.lib.llama_model_default_params()
        # Without the weight layouts of special CPUs, which round in their own ways.
        model_params.use_extra_bufts = False
        model = ctypes.c_void_p(self.lib.llama_model_load_from_file(model.encode(), model_params))
        params = self.lib.llama_context_default_params()
        params.n_ctx, params.type_k, params.type_v = 2048, 1, 1  # f16
        params.n_threads = params.n_threads_batch = len(os.sched_getaffinity(0))
        self.context = ctypes.c_void_p(self.lib.llama_init_from_model(model, params))
        self.vocab = ctypes.c_void_p(self.lib.llama_model_get_vocab(model))
        self.vocab_size = self.lib.llama_vocab_n_tokens(self.vocab)
        self.batch = self.lib.llama_batch_init(2048, 0, 1)
        self.position = 0

    def tokenize(self, text):
        data = text.encode()
        tokens = (ctypes.c_int32 * (len(data) + 8))()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), tokens, len(tokens), False, True)
        return list(tokens[:count])

    def restart(self):
        self.lib.llama_memory_clear(ctypes.c_void_p(self.lib.llama_get_memory(self.context)), True)
        self.position = 0

    def append(self, tokens):
        """The logits after the last of the tokens."""
        self.batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            self.batch.token[i] = token
            self.batch.pos[i] = self.position + i
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = 0
            self.batch.logits[i] = i == len(tokens) - 1
        if self.lib.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama_decode failed")
        self.position += len(tokens)
        logits = self.lib.llama_get_logits_ith(self.context, -1)
        return numpy.ctypeslib.as_array(logits, shape=(self.vocab_size,)).astype(numpy.float64)


def greedy(llama, prompt):
    llama.restart()
    prompt_ids = llama.tokenize(prompt)
    logits = llama.append(prompt_ids)
    ids, gaps = [], []
    for _ in range(GREEDY_TOKENS):
        second, first = numpy.argsort(logits)[-2:]
        ids.append(int(first))
        gaps.append(round(logits[first] - logits[second], 3))
        logits = llama.append([first])
    return {"text": prompt, "prompt_ids": prompt_ids, "greedy_ids": ids, "gaps": gaps}


def ramble(llama, opening, rng):
    """A text whose every token is one of the likeliest few, whichever: one sampled by the model's own
    probabilities would favour the engine that sampled it."""
    llama.restart()
    context_ids = llama.tokenize(opening)
    ids, logprobs = [], []
    logits = llama.append(context_ids)
    while len(context_ids) + len(ids) < TEXT_TOKENS:
        token = int(rng.choice(numpy.argsort(logits)[-CHOICES:]))
        top = logits.max()
        ids.append(token)
        logprobs.append(round(logits[token] - top - numpy.log(numpy.exp(logits - top).sum()), 4))
        logits = llama.append([token])
    return {"context_ids": context_ids, "ids": ids, "logprobs": logprobs}


def main():
    llama = Llama(sys.argv[1], sys.argv[2])
    rng = numpy.random.default_rng(7)
    reference = {
        "prompts": [greedy(llama, prompt) for prompt in PROMPTS],
        "texts": [ramble(llama, opening, rng) for opening in OPENINGS],
    }
    print(json.dumps(reference, separators=(",", ":")).replace('{"', '\n{"'))


if __name__ == "__main__":
    main()
