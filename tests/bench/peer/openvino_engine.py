"""OpenVINO GenAI. It reads the GGUF file itself: matrices of Q4_1 become 4-bit ones with a scale and
a 4-bit zero point for each group of 32, where the file has a minimum of 16 bits; those of Q8_0 stay
at 8 bits.
"""

import importlib.metadata

import numpy as np
import openvino
import openvino_genai

# Of its matrix products (bf16: AMX where there is; f32: with activations quantized to 8 bits), and
# of keys and values. Its own defaults on a CPU with AMX are bf16 and u8.
SETTINGS = {
    "bf16 KV-u8": {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "u8"},
    "f32 KV-u8": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "u8"},
    "f32 KV-f16": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f16"},
}
CACHE_GIB = 2
# A prompt in as few steps as can be; by default a step takes 256 tokens.
STEP_TOKENS = 2048


class Engine:
    def __init__(self, model, settings, threads, cache):
        del cache  # it is fast to load
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GIB
        scheduler.max_num_batched_tokens = STEP_TOKENS
        scheduler.enable_prefix_caching = True
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(model), scheduler, "CPU",
            {"INFERENCE_NUM_THREADS": threads, **SETTINGS[settings]})
        self._handles = {}
        self._added = 0
        self.name = "OpenVINO GenAI " + importlib.metadata.version("openvino-genai")

    def add(self, prompt, new_tokens):
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = new_tokens
        config.ignore_eos = True
        self._added += 1
        self._handles[self._added] = self._pipeline.add_request(
            self._added, openvino.Tensor(np.array([prompt], dtype=np.int64)), config)
        return self._added

    def step(self):
        self._pipeline.step()
        tokens = []
        for request, handle in self._handles.items():
            while handle.can_read():
                for output in handle.read().values():
                    tokens += [request] * len(output.generated_ids)
        return tokens

    def drop(self, requests):
        for request in requests:
            self._handles.pop(request).stop()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
