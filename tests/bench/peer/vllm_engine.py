"""vLLM. It serves no GGUF files on a CPU; gguf_to_hugging_face converts them, once for each of
SETTINGS.
"""

import hashlib
import importlib.metadata
import os

import gguf_to_hugging_face

# Of the matrices: as the file's 4-bit values are when dequantized, or in AWQ's form, which is the
# file's but for minima that are multiples of a quantum. vLLM multiplies the one in bf16, the other
# with activations of 8 bits.
SETTINGS = {"bf16": gguf_to_hugging_face.bf16, "AWQ": gguf_to_hugging_face.awq}
CACHE_GIB = 2
STEP_TOKENS = 2048  # a prompt in as few steps as can be
MIB = 1 << 20


def converted(model, settings, cache):
    """The folder of the model in the form that vLLM reads, made unless it is there."""
    with open(model, "rb") as file:  # the metadata and a part of the weights tell files apart
        digest = hashlib.sha256(file.read(16 * MIB)).hexdigest()[:12]
    folder = cache / f"{model.stem}-{digest}-{settings}"
    if not folder.is_dir():
        SETTINGS[settings](model, folder)
    return folder


class Engine:
    def __init__(self, model, settings, threads, cache):
        cpus = sorted(os.sched_getaffinity(0))[:threads]
        os.environ.update({
            "OMP_NUM_THREADS": str(threads),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus)),
            "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # so that step() is a step
            "VLLM_CACHE_ROOT": str((cache / "compiled").resolve()),
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        })
        import vllm  # reads the environment
        self._vllm = vllm
        self._engine = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(
            model=str(converted(model, settings, cache)), dtype="bfloat16",
            skip_tokenizer_init=True, max_num_batched_tokens=STEP_TOKENS, disable_log_stats=True))
        self._added = 0
        self.name = "vLLM " + importlib.metadata.version("vllm-cpu")

    def add(self, prompt, new_tokens):
        self._added += 1
        self._engine.add_request(
            str(self._added), {"prompt_token_ids": prompt},
            self._vllm.SamplingParams(
                max_tokens=new_tokens, ignore_eos=True, temperature=0, detokenize=False,
                output_kind=self._vllm.sampling_params.RequestOutputKind.DELTA))
        return str(self._added)

    def step(self):
        return [output.request_id for output in self._engine.step()
                for _ in output.outputs[0].token_ids]

    def drop(self, requests):
        self._engine.abort_request(requests)
        while self._engine.has_unfinished_requests():
            self._engine.step()
