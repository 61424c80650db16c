#!/usr/bin/env python3
"""Compares Whit's tokenizer with Hugging Face's `tokenizers` on a nasty corpus.

The reference is built from the model file's own vocabulary and merges. Every string is tokenized with
special tokens parsed and not parsed, and turned back to text. So is it by the tokenizer.json that Whit
gives to gateways. Prints the number of strings and each mismatch; exits with 1 if there is any.

  pip install tokenizers gguf
  cmake --build --preset release --target whit_tokenize_lines
  tests/eval/compare_tokenizer.py MODEL.gguf [TEXT_FILE ...]
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import unicodedata

import gguf
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4


def split_by(expression):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(expression), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PRE_TOKENIZERS = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    "llama-bpe": lambda: split_by(LLAMA3),
    "qwen2": lambda: split_by(QWEN2),
}


def read_reference(model_path):
    """The reference tokenizer, and the spellings of the tokens that are not ordinary."""
    fields = gguf.GGUFReader(model_path).fields

    def read(key):
        return fields[key].contents()

    pre = read("tokenizer.ggml.pre") if "tokenizer.ggml.pre" in fields else "gpt-2"
    if read("tokenizer.ggml.model") != "gpt2" or pre not in PRE_TOKENIZERS:
        sys.exit(f"no reference for tokenizer {read('tokenizer.ggml.model')}, pre-tokenizer {pre}")
    spellings = read("tokenizer.ggml.tokens")
    kinds = read("tokenizer.ggml.token_type")
    reference = tokenizers.Tokenizer(
        models.BPE(
            vocab={spelling: i for i, spelling in enumerate(spellings)},
            merges=[tuple(merge.split(" ")) for merge in read("tokenizer.ggml.merges")],
            ignore_merges=pre == "llama-bpe",
        )
    )
    reference.pre_tokenizer = PRE_TOKENIZERS[pre]()
    reference.decoder = decoders.ByteLevel()
    special = [s for s, kind in zip(spellings, kinds) if kind == CONTROL]
    user_defined = [s for s, kind in zip(spellings, kinds) if kind == USER_DEFINED]
    reference.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    reference.add_tokens([AddedToken(s, normalized=False) for s in user_defined])
    return reference, special + user_defined


HAND_PICKED = [
    "",
    " ",
    "\n",
    "\r\n",
    "\t",
    "Hello, world!",
    " leading and trailing ",
    "it's IT'S It'S we'll WE'LL I'd I'D they've THEY'VE can't CAN'T you're YOU'RE I'm I'M",
    "'s 't 're 've 'm 'll 'd 'S 'T 'Re 'vE 'M 'Ll 'D 'x ''s '''",
    "'\u017f 'l\u017f \u2019s",  # long s; typographic apostrophe
    "1 12 123 1234 12345 1,234,567.89 3.14159e-10 0x1F 1/2 \u00bd \u2167 \u0664\u0665\u0666 \u4e09",
    "a1b22c333d4444",
    "  2   3\t4\n5 6",
    "no\u00a0break \u00a0\u00a0 narrow\u202fspace thin\u2009space \u2003em \u3000ideographic",
    "zero\u200bwidth\u200bspace word\u2060joiner \ufeffbom soft\u00adhyphen \u180evowel\u180eseparator",
    "line\u2028separator paragraph\u2029separator next\u0085line form\ffeed vertical\vtab",
    "a\rb\r\nc\n\rd\n\n\ne\r\r\rf \r g \n h",
    "trailing spaces   \n   \n\t\t\n  x",
    "e\u0301 o\u0308\u0323 a\u0300\u0301\u0302\u0303 n\u0303o",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308 "
    "\U0001f44b\U0001f3fd \U0001f1e9\U0001f1ea 1\ufe0f\u20e3 \u2764\ufe0f",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u3053\u3093\u306b\u3061\u306f \uc548\ub155\ud558\uc138\uc694",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643\u0645 \u05e9\u05dc\u05d5\u05dd "
    "\u202eright to left\u202c \u0661\u0662\u0663",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0ba4\u0bae\u0bbf\u0bb4\u0bcd",
    "for (int i = 0; i < n; ++i) {\n\treturn a[i]->b.c(\"x\\n\");\n}\n",
    "def f(x):\n    if x:\n        return {'a': [1, 2]}\n\n\n# end",
    "<html>\n  <p class=\"a\">x &amp; y</p>\r\n</html>",
    "https://example.com/a/b?c=d&e=%20f#g user@example.com C:\\dir\\file.txt",
    "".join(map(chr, range(128))),
    "".join(map(chr, range(128, 256))),
    "!\x04! a\x06b \x7f \x00\x00",
    "a" * 3000,
    "ab" * 1500,
    " " * 3000,
    " " * 3000 + "x",
    "\n" * 3000,
    " \n" * 1500,
    "=" * 3000,
    "9" * 3000,
    "\u0301" * 1000,
    "\U0001f600" * 1000,
    "\u4e2d" * 3000,
    "Donaudampfschifffahrtselektrizit\u00e4tenhauptbetriebswerkbauunterbeamtengesellschaft",
]

FRAGMENTS = (
    ["a", "B", "the", "The", "THE", "ing", "z\u00e9", "\u00df", "\u0130", "\u01c5", "\ufb01", "\u02b0"]
    + ["'s", "'S", "'t", "'re", "'VE", "'m", "'ll", "'LL", "'d", "'", "\u2019s"]
    + ["1", "42", "007", "2024", "\u0663", "\u00b2", "\u2166", "\u3007"]
    + [" ", " ", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", "\u00a0", "\u3000", "\u2028", "\v"]
    + [".", ",", "!", "?!", "...", "-", "--", "_", "(", ")", "[]", "{}", "<", ">", "|", "<|", "|>", "/"]
    + ["\\", "\"", "`", "$", "%", "#", "@", "&", "*", "+", "=", "~", "^", "\u20ac", "\u2014", "\u2026"]
    + ["\u0301", "\u0308", "\u200d", "\u200b", "\ufe0f", "\u20e3", "\U0001f600", "\U0001f3fd", "\U0001f468"]
    + ["\u4e2d\u6587", "\u304b\u306a", "\ud55c", "\u0639\u0631", "\u05e2", "\u0939\u093f", "\u0e44\u0e17\u0e22"]
    + ["\x00", "\x04", "\x1b", "\x7f", "\u0085", "\u00ad", "\u180e", "\ufeff", "\ufffd", "\U0010ffff"]
)


def assigned_code_points():
    """Runs of 48 neighbours, bare and each between letters, spaces and digits."""
    points = [
        chr(p) for p in range(0x110000) if unicodedata.category(chr(p)) not in ("Cn", "Cs", "Co")
    ]
    for i in range(0, len(points), 48):
        run = points[i : i + 48]
        yield "".join(run)
        yield "".join(f"a{c} {c}1{c}  {c}\n" for c in run)


def random_mixtures(special, count):
    rng = random.Random(1)
    fragments = FRAGMENTS + special
    for _ in range(count):
        yield "".join(rng.choices(fragments, k=rng.randint(1, 40)))


def texts_of(path):
    """A file's lines, and stretches of 4,000 characters that begin anywhere."""
    text = pathlib.Path(path).read_bytes().decode("utf-8")
    yield from text.splitlines(keepends=True)
    for i in range(0, len(text), 4000):
        yield text[i : i + 4000]


def build_corpus(special, files):
    corpus = list(HAND_PICKED)
    corpus += special + [f"a{s}b {s} {s[1:]}{s[:-1]}{s}{s}" for s in special]
    corpus += assigned_code_points()
    corpus += random_mixtures(special, 10_000)
    for path in files:
        corpus += texts_of(path)
    return corpus


def tokenize_with_whit(tool, model_path, requests):
    lines = "".join(
        json.dumps({"text": text, "parse_special": parse}) + "\n" for text, parse in requests
    )
    run = subprocess.run([tool, model_path], input=lines.encode(), stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("files", nargs="*", help="UTF-8 texts to compare on as well")
    root = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument("--tool", default=root / "build/release/bin/whit_tokenize_lines")
    options = parser.parse_args()

    reference, special = read_reference(options.model)
    exported = tokenizers.Tokenizer.from_str(
        subprocess.run([options.tool, "--tokenizer-json", options.model], stdout=subprocess.PIPE,
                       check=True).stdout.decode())
    requests = [(text, parse) for text in build_corpus(special, options.files) for parse in (False, True)]
    answers = tokenize_with_whit(options.tool, options.model, requests)
    if len(answers) != len(requests):
        sys.exit(f"{len(requests)} requests, but {len(answers)} answers")

    mismatches = tokens = 0
    for (text, parse), answer in zip(requests, answers):
        reference.encode_special_tokens = exported.encode_special_tokens = not parse
        expected = reference.encode(text, add_special_tokens=False).ids
        expected_text = reference.decode(expected, skip_special_tokens=False) if not parse else None
        tokens += len(expected)
        given = exported.encode(text, add_special_tokens=False).ids
        if given != expected or exported.decode(given, skip_special_tokens=False) != (
                reference.decode(expected, skip_special_tokens=False)):
            mismatches += 1
            print(f"mismatch of tokenizer.json, parse_special={parse}: {ascii(text)[:200]}")
        if answer["token_ids"] != expected or expected_text not in (None, answer["text"]):
            mismatches += 1
            if mismatches <= 20:
                print(f"mismatch, parse_special={parse}: {ascii(text)[:200]}")
                print(f"  expected {expected[:40]}\n  Whit     {answer['token_ids'][:40]}")
    print(f"{len(requests)} strings, {tokens} tokens, {mismatches} mismatches")
    sys.exit(1 if mismatches else 0)


if __name__ == "__main__":
    main()
