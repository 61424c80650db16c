"""What tests/eval/report measures, in parts: which command each is, and keeping what it found.

A part is one run of whit-eval or whit-bench. Every run has the FP16 arm, so a part can be compared
with others of the same texts or items.
"""

import dataclasses
import json
import pathlib
import re

# Families of arms, each run by itself: a part is finished in minutes.
BUDGETS = ("2.5", "3", "3.5", "4.25")
FAMILIES = {
    "static": ("static:K2V2", "static:K4V2", "static:K4V4", "static:K8V4"),
    "static-allocated": tuple(f"static-allocated:{bits}" for bits in BUDGETS),
    "random": ("random:K2V2=3,K4V4=1", "random:K2V2=1,K4V4=1", "random:K2V2=1,K4V4=3"),
    "baselines": ("naive:K4V4", "rule", "learned"),
    "adaptive": tuple(f"adaptive:{bits}" for bits in BUDGETS),
    "oracle": tuple(f"oracle:{bits}" for bits in BUDGETS),
}
# Of tasks and needles, whose differences are too small to tell more arms apart.
CHOSEN = {
    "static": ("naive:K4V4", "static:K2V2", "static:K4V4"),
    "mixed": ("static-allocated:3", "random:K2V2=1,K4V4=1"),
    "baselines": ("rule", "learned"),
    "adaptive": tuple(f"adaptive:{bits}" for bits in BUDGETS),
}
TIMED = ("fp16", "static:K4V4", "rule", "learned", "adaptive:3", "adaptive:3.5")
# What the paper's Table 3 compares.
TABLE3 = ("naive:K4V4", *TIMED)
LENGTHS_ARMS = ("static:K4V4", "adaptive:3", "adaptive:3.5")


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured."""

    kld_tokens: dict  # by context
    task_items: int  # of each task; 0: all
    long_items: int
    long_prefix: int
    needle_trials: dict  # by context
    lengths: tuple  # of requests whose savings are measured
    bench: tuple  # whit-bench's flags


FULL = Size(
    kld_tokens={512: 8192, 2048: 24576, 8192: 24576},
    task_items=400,
    long_items=25,
    long_prefix=2048,
    needle_trials={4096: 25, 8192: 25},
    lengths=(64, 128, 256, 1024, 4096),
    bench=("--repeats=5",),
)
# Shows that everything works; its figures are of too few tokens to mean much.
QUICK = Size(
    kld_tokens={256: 512, 512: 512},
    task_items=2,
    long_items=1,
    long_prefix=128,
    needle_trials={512: 2},
    lengths=(64, 128),
    bench=("--repeats=1", "--steps=4"),
)


@dataclasses.dataclass(frozen=True)
class Part:
    name: str  # of its file, too
    kind: str  # kld, lengths, tasks, long, needle, bench
    tool: str  # whit-eval or whit-bench
    arguments: tuple

    def file(self, folder):
        return pathlib.Path(folder) / (self.name + ".json")


def part_name(*words):
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(map(str, words)))


def plan(size, model, texts, tasks, policy_file=None, threads=None):
    """All parts, in the order in which they are best run: what is short and asked for most, first.

    texts: paths; tasks: {name: path}.
    """
    common = ["--model", str(model)]
    if policy_file is not None:
        common += ["--kv-policy-file", str(policy_file)]
    if threads is not None:
        common += ["--threads", str(threads)]
    of_texts = [*common, "--text", *map(str, texts)]
    parts = []

    def add(kind, words, tool, arguments):
        parts.append(Part(part_name(kind, *words), kind, tool, tuple(map(str, arguments))))

    if texts:
        for context, tokens in size.kld_tokens.items():
            for family, arms in FAMILIES.items():
                add("kld", (context, family), "whit-eval",
                    ["kld", *of_texts, "--contexts", context, "--tokens", tokens, "--arms",
                     ",".join(arms)])
        for length in size.lengths:
            add("lengths", (length,), "whit-eval",
                ["kld", *of_texts, "--contexts", length, "--tokens", 4 * length, "--arms",
                 ",".join(LENGTHS_ARMS)])
    for kind, items, extra in (("tasks", size.task_items, ()),
                               ("long", size.long_items, ("--prefix-tokens", size.long_prefix))):
        for task, path in tasks.items():
            for family, arms in CHOSEN.items():
                add(kind, (task, family), "whit-eval",
                    ["tasks", *common, "--task", f"{task}={path}", "--limit", items, *extra,
                     "--arms", ",".join(arms)])
    if texts:
        for context, trials in size.needle_trials.items():
            for family, arms in CHOSEN.items():
                add("needle", (context, family), "whit-eval",
                    ["needle", *of_texts, "--contexts", context, "--trials", trials, "--arms",
                     ",".join(arms)])
    for arm in TIMED:
        add("bench", (arm,), "whit-bench",
            [*common, "--json", "--only=decode_d128,decode_d2048", *size.bench, "--kv-policy", arm])
    return parts


def load(part, folder):
    """What the part found when it was run: {"arguments", "build", "rows", "notes"}; None if it was
    not, or its command is another by now."""
    try:
        found = json.loads(part.file(folder).read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SystemExit(f"report: {part.file(folder)} is no JSON ({error}); remove it") from error
    return found if found["arguments"] == list(part.arguments) else None


def save(part, folder, build, rows, notes):
    found = {"arguments": list(part.arguments), "build": build, "rows": rows, "notes": notes}
    unfinished = part.file(folder).with_suffix(".unfinished")
    unfinished.write_text(json.dumps(found, indent=1) + "\n")
    unfinished.rename(part.file(folder))
