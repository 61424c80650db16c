"""What whit-bench measures of an engine that batches requests step by step (continuous batching).

Depth is reached by the engine's cache of prompts' prefixes: a sequence's prompt is the same each
time, so only the first takes long, and each run starts at the depth that was asked for. A decode
step is one step of the engine, with its sampling (greedy), while every sequence is decoding; no
prompt is timed with it. A prompt to be timed has tokens that were never seen.
"""

import random
import time

# Of the special tokens, which come first, whit-bench's own prompts have none either.
SPECIAL_SHARE = 100
# Steps before the timed ones: the engine's own lists and buffers grow in the first.
SETTLING_STEPS = 2
# More than any run decodes; whit-bench asks for 64 steps at most.
MAX_NEW_TOKENS = 96


class Turns:
    """Drives an engine, which has

    add(prompt, new_tokens)  puts a request in, which ends after so many tokens; returns its id
    step()                   one step; returns the ids of requests that got a token, once a token
    drop(ids)                ends requests
    """

    def __init__(self, engine, vocab_size, clock=time.perf_counter):
        self._engine = engine
        self._vocab_size = vocab_size
        self._clock = clock
        self._prompts = random.Random(0)
        self._ids = []

    def prepare(self, sequences, depth):
        self._drop()
        # The settling steps add the rest.
        length = max(1, depth - SETTLING_STEPS)
        self._ids = [self._engine.add(self._tokens(length, random.Random(1 + i)), MAX_NEW_TOKENS)
                     for i in range(sequences)]
        started = set()
        while len(started) < sequences:
            started.update(self._engine.step())
        for _ in range(SETTLING_STEPS):
            self._engine.step()

    def decode(self, steps):
        if not self._ids:
            raise ValueError("decode without prepare")
        begin = self._clock()
        tokens = sum(len(self._engine.step()) for _ in range(steps))
        seconds = self._clock() - begin
        if tokens != steps * len(self._ids):
            raise RuntimeError(f"{steps} steps of {len(self._ids)} sequences gave {tokens} tokens")
        return seconds

    def prefill(self, tokens):
        self._drop()
        prompt = self._tokens(tokens, self._prompts)
        begin = self._clock()
        self._ids = [self._engine.add(prompt, MAX_NEW_TOKENS)]
        while not self._engine.step():
            pass
        seconds = self._clock() - begin
        self._drop()
        return seconds

    def _drop(self):
        if self._ids:
            self._engine.drop(self._ids)
        self._ids = []

    def _tokens(self, count, source):
        first = self._vocab_size // SPECIAL_SHARE
        return [source.randrange(first, self._vocab_size) for _ in range(count)]
