import unittest

import work


class FakeEngine:
    """Takes `prompt_steps` steps for a prompt, then gives a token a step; a second a step."""

    def __init__(self, prompt_steps=1):
        self.prompt_steps = prompt_steps
        self.seconds = 0.0
        self.prompts = []
        self.running = {}  # steps left of each request's prompt

    def add(self, prompt, new_tokens):
        assert new_tokens >= 64
        self.prompts.append(prompt)
        self.running[len(self.prompts)] = self.prompt_steps
        return len(self.prompts)

    def step(self):
        self.seconds += 1
        reading = [request for request, left in self.running.items() if left > 0]
        if reading:  # one prompt a step, as in a full batch
            self.running[reading[0]] -= 1
        return [request for request, left in self.running.items() if left == 0]

    def drop(self, requests):
        for request in requests:
            del self.running[request]


class TurnsTest(unittest.TestCase):
    def turns(self, engine):
        return work.Turns(engine, vocab_size=1000, clock=lambda: engine.seconds)

    def test_decode_times_only_its_steps(self):
        engine = FakeEngine(prompt_steps=3)
        turns = self.turns(engine)
        turns.prepare(4, 100)
        self.assertEqual(turns.decode(16), 16)
        self.assertEqual(list(engine.running.values()), [0] * 4)

    def test_sequences_differ_and_are_the_same_each_time(self):
        engine = FakeEngine()
        turns = self.turns(engine)
        turns.prepare(2, 100)
        turns.prepare(2, 100)
        first, second, *again = engine.prompts
        self.assertNotEqual(first, second)
        self.assertEqual(again, [first, second])
        self.assertEqual(len(engine.running), 2)

    def test_settling_steps_are_a_part_of_the_depth(self):
        engine = FakeEngine()
        begin = engine.seconds
        self.turns(engine).prepare(1, 100)
        steps_after_the_prompt = engine.seconds - begin - 1
        self.assertEqual(len(engine.prompts[0]) + steps_after_the_prompt, 100)

    def test_a_deeper_sequence_continues_the_same_prompt(self):
        engine = FakeEngine()
        turns = self.turns(engine)
        turns.prepare(1, 50)
        turns.prepare(1, 100)
        shallow, deep = engine.prompts
        self.assertEqual(deep[:len(shallow)], shallow)

    def test_prefill_is_until_the_first_token_of_a_new_prompt(self):
        engine = FakeEngine(prompt_steps=5)
        turns = self.turns(engine)
        turns.prepare(2, 20)
        self.assertEqual(turns.prefill(512), 5)
        self.assertEqual(turns.prefill(512), 5)
        self.assertEqual([len(prompt) for prompt in engine.prompts[2:]], [512, 512])
        self.assertNotEqual(*engine.prompts[2:])
        self.assertFalse(engine.running)

    def test_no_special_tokens(self):
        engine = FakeEngine()
        self.turns(engine).prefill(2000)
        self.assertGreaterEqual(min(engine.prompts[0]), 10)
        self.assertLess(max(engine.prompts[0]), 1000)

    def test_sequences_that_end_are_not_timed(self):
        engine = FakeEngine()
        turns = self.turns(engine)
        turns.prepare(2, 20)
        engine.running.popitem()
        with self.assertRaisesRegex(RuntimeError, "3 steps of 2 sequences gave 3 tokens"):
            turns.decode(3)

    def test_decode_needs_prepare(self):
        turns = self.turns(FakeEngine())
        turns.prefill(10)
        with self.assertRaisesRegex(ValueError, "prepare"):
            turns.decode(1)


if __name__ == "__main__":
    unittest.main()
