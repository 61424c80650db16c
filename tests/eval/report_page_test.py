"""Tests of tests/eval/report's plan and page, on small results made up here."""

import dataclasses
import math
import pathlib
import re
import tempfile
import unittest

import report_page
import report_parts
from report_parts import Part

TASKS = {"hellaswag": pathlib.Path("/h.jsonl"), "arc_challenge": pathlib.Path("/a.jsonl")}
TEXTS = [pathlib.Path("/t.txt")]


def plan(size=report_parts.QUICK, texts=TEXTS, tasks=TASKS):
    return report_parts.plan(size, "/m.gguf", texts, tasks)


def kld_row(arm, true_bits, kld, context=512, chunks=(1.0, 1.0), bits=None):
    row = {
        "arm": arm, "context": context, "true_bits": true_bits, "true_bits_time_averaged": true_bits,
        "packed_bits": true_bits, "kv_bytes_per_token": 1000 * true_bits, "tokens": 1022,
        "kld_mean": kld, "delta_ln_ppl": kld, "top1_agreement": 0.975, "fp16_ppl": 20.5,
        "ci95": {"kld_mean": [kld / 2, kld * 2], "delta_ln_ppl": [None, None]},
        "chunk_kld_mean": [kld * factor for factor in chunks],
        "chunk_true_bits": [true_bits - 0.25, true_bits + 0.25],
        "model": "tiny", "policy_file": "tiny.whitpolicy"}
    if bits:
        row["bits"] = bits
    return row


def task_row(arm, share, p, task="hellaswag", norm=None):
    def found(value):
        return {"share": value, "delta": value - 0.5, "mcnemar_p": p,
                "ci95": {"share": [value - 0.1, value + 0.1], "delta": [None, None]}}

    row = {"arm": arm, "task": task, "context": 90, "items": 40, "true_bits": 5.25,
           "kv_bytes_per_token": 6543.2, "accuracy": found(share)}
    if norm is not None:
        row["accuracy_norm"] = found(norm)
    return row


def results(rows_by_kind, notes=()):
    """Each kind as one part that was run; the other kinds as one that was not."""
    parts = []
    for kind in ("kld", "lengths", "tasks", "long", "needle"):
        found = kind in rows_by_kind and {"build": "b", "rows": rows_by_kind[kind], "notes": []}
        parts.append((Part(kind + "_part", kind, "whit-eval", ()), found or None))
    for arm, rows in rows_by_kind.get("bench", {}).items():
        parts.append((Part("bench_" + arm, "bench", "whit-bench", ("--kv-policy", arm)),
                      {"build": "c", "rows": rows, "notes": list(notes)}))
    if "bench" not in rows_by_kind:
        parts.append((Part("bench_part", "bench", "whit-bench", ("--kv-policy", "x")), None))
    return report_page.Results(parts)


class PlanTest(unittest.TestCase):
    def test_parts_have_names_of_their_own_that_are_file_names(self):
        for size in (report_parts.QUICK, report_parts.FULL):
            names = [part.name for part in plan(size)]
            self.assertEqual(len(names), len(set(names)))
            for name in names:
                self.assertRegex(name, r"^[A-Za-z0-9._-]+$")

    def test_only_what_there_are_files_for_is_planned(self):
        self.assertEqual({part.kind for part in plan(texts=[])}, {"tasks", "long", "bench"})
        self.assertEqual({part.kind for part in plan(tasks={})},
                         {"kld", "lengths", "needle", "bench"})

    def test_a_full_run_has_the_contexts_and_arms_that_are_asked_for(self):
        commands = [" ".join(part.arguments) for part in plan(report_parts.FULL)]
        for context in (512, 2048, 8192):
            self.assertTrue(any(f"--contexts {context} " in c and "oracle:3," in c
                                for c in commands), context)
        for context in (4096, 8192):
            self.assertTrue(any(c.startswith("needle") and f"--contexts {context} " in c
                                for c in commands), context)
        self.assertTrue(any("--prefix-tokens 2048" in c for c in commands))
        for arm in ("naive:K4V4", "static:K4V4", "rule", "learned", "adaptive:3"):
            self.assertTrue(any(c.startswith("tasks") and arm in c for c in commands), arm)


class KeepTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.part = plan()[0]

    def test_a_finished_part_is_found_again(self):
        self.assertIsNone(report_parts.load(self.part, self.folder.name))
        report_parts.save(self.part, self.folder.name, "build", [{"arm": "fp16"}], ["note"])
        found = report_parts.load(self.part, self.folder.name)
        self.assertEqual((found["rows"], found["build"]), ([{"arm": "fp16"}], "build"))

    def test_another_command_is_another_part(self):
        report_parts.save(self.part, self.folder.name, "build", [], [])
        other = dataclasses.replace(self.part, arguments=(*self.part.arguments, "--limit", "3"))
        self.assertIsNone(report_parts.load(other, self.folder.name))

    def test_a_broken_file_is_named(self):
        self.part.file(self.folder.name).write_text('{"rows": [')
        with self.assertRaisesRegex(SystemExit, re.escape(self.part.name)):
            report_parts.load(self.part, self.folder.name)


class FiguresTest(unittest.TestCase):
    def test_bits_at_equal_kld_lie_on_the_line_through_its_logarithms(self):
        curve = [kld_row("static:K2V2", 2, 0.04), kld_row("static:K4V4", 4, 0.0025)]
        self.assertAlmostEqual(report_page.bits_at_equal_kld(curve, 0.01), 3)
        self.assertAlmostEqual(report_page.bits_at_equal_kld(curve, 0.04), 2)
        self.assertIsNone(report_page.bits_at_equal_kld(curve, 0.05))
        self.assertIsNone(report_page.bits_at_equal_kld(curve, 0.002))
        self.assertIsNone(report_page.bits_at_equal_kld([], 0.01))

    def test_the_paired_difference_keeps_what_chunks_have_in_common_out(self):
        mean, (low, high) = report_page.paired_difference([1.1, 5.2, 9.1], [1, 5, 9])
        self.assertAlmostEqual(mean, 0.4 / 3)
        self.assertLess(0, low)
        self.assertLess(low, mean)
        self.assertLess(mean, high)
        self.assertLess(high, 0.21)
        self.assertEqual(report_page.paired_difference([2.0], [1.5]), (0.5, None))
        with self.assertRaises(ValueError):  # not the same chunks
            report_page.paired_difference([1], [1, 2])

    def test_rivals_hold_at_least_as_many_bits_where_there_are_any(self):
        ours = kld_row("adaptive:3", 3.4, 0.001)
        rows = [ours, kld_row("fp16", 16, 0), kld_row("static:K2V2", 2.5, 0.1),
                kld_row("static:K4V2", 3.5, 0.1), kld_row("static:K4V4", 4.5, 0.1),
                kld_row("naive:K2V2", 2.3, 0.1), kld_row("adaptive:4", 4, 0)]
        self.assertEqual([r["arm"] for r in report_page.rivals(ours, rows)],
                         ["static:K4V2", "naive:K2V2"])

    def test_an_arm_of_several_parts_counts_once(self):
        rows = [kld_row("fp16", 16, 0), kld_row("adaptive:3", 3, 0.1), kld_row("fp16", 16, 0)]
        self.assertEqual([r["arm"] for r in results({"kld": rows}).rows("kld")],
                         ["fp16", "adaptive:3"])


class PageTest(unittest.TestCase):
    def page(self, rows_by_kind, notes=()):
        return report_page.page(results(rows_by_kind, notes), "tests/eval/report", quick=False)

    def test_what_was_not_run_is_said_to_be_missing(self):
        page = self.page({})
        self.assertEqual(page.count("Not measured."), page.count("\n## "))
        self.assertIn("0 of 6 parts", page)
        for name in ("kld_part", "tasks_part", "long_part", "needle_part", "bench_part"):
            self.assertIn(f"`{name}`", page)
        self.assertNotIn("| ---", page)  # no table
        self.assertNotIn("![", page)
        self.assertEqual(report_page.plots(results({})), {})

    def test_kld(self):
        page = self.page({"kld": [
            kld_row("fp16", 16.06, 0), kld_row("adaptive:3", 3.4, 0.01, chunks=(0.5, 1.5)),
            kld_row("static:K2V2", 2.5, 0.04), kld_row("static:K4V4", 4.5, 0.0025)]})
        self.assertIn("| `adaptive:3` | 3.40 | 3.40 | 3.40 | 0.01000 [0.00500, 0.02000] | +0.0100 |"
                      " 97.5 % |", page)
        self.assertIn("1,022 positions in 2 chunks, FP16 perplexity 20.50.", page)
        self.assertIn("| `adaptive:3` | 3.40 |  | +0.10 |  |  |", page)  # static needs 3.5
        self.assertIn("| `adaptive:3` | `static:K4V4` | -1.10 | +0.00750", page)
        self.assertNotIn("`kld_part`", page)

    def test_table_3_leaves_times_empty_that_were_not_measured(self):
        tasks = [task_row("fp16", 0.5, 1), task_row("naive:K4V4", 0.4, 0.031, norm=0.45),
                 task_row("adaptive:3", 0.5, 0.5)]
        bench = {"adaptive:3": [{"name": "decode_d128", "value": 250, "unit": "tok/s"},
                                {"name": "dram_read", "value": 30, "unit": "GB/s"}],
                 "static:K4V4": [{"name": "decode_d128", "value": 200, "unit": "tok/s"}]}
        page = self.page({"tasks": tasks, "bench": bench}, notes=["whit-bench: a neighbour"])
        self.assertIn("| hellaswag | `fp16` | 50.0 [40.0, 60.0] |  |  | 6,543 |  |  |", page)
        self.assertIn("| hellaswag | `naive:K4V4` | 45.0 [35.0, 55.0] | -5.0 | 0.03 | 6,543 |  |  |",
                      page)
        self.assertIn("| hellaswag | `adaptive:3` | 50.0 [40.0, 60.0] | +0.0 | 0.50 | 6,543 | 4.00 |"
                      "  |", page)
        self.assertIn("| 128 | `adaptive:3` | -20.0 % |", page)
        self.assertIn("whit-bench: a neighbour", page)
        panel = report_page.plots(results({"tasks": tasks}))["tasks.svg"]["panels"][0]
        self.assertEqual(panel["reference"], 50)
        self.assertEqual([point["series"] for point in panel["points"]], ["naive", "adaptive"])

    def test_where_the_bits_go(self):
        bits = {"by_layer_and_kv_head": [[2, 4], [3, 6], [4, 8]],
                "by_token_kind": {"sink": {"tokens": 16, "packed_bits": 16.0},
                                  "digits": {"tokens": 7, "packed_bits": 5.5}}}
        rows = [kld_row("fp16", 16, 0), kld_row("adaptive:3", 3, 0.1, bits=bits),
                kld_row("static:K4V4", 4, 0.1, bits=bits),
                kld_row("fp16", 16, 0, context=256),
                kld_row("adaptive:3", 3, 0.1, context=256, bits=bits)]
        page = self.page({"kld": rows})
        self.assertIn("at a context of 512", page)
        self.assertIn("| policy | first page (sink) | digits |", page)
        self.assertIn("| `adaptive:3` | 16.00 | 5.50 |", page)
        self.assertIn("| `adaptive:3` | 3.00 | 6.00 | 3.00 | 6.00 |", page)
        self.assertNotIn("| `static:K4V4` | 16.00", page)  # it chooses nothing
        points = report_page.plots(results({"kld": rows}))["bits.svg"]["panels"][0]["points"]
        self.assertEqual([(point["x"], point["y"]) for point in points], [(0, 3), (1, 4.5), (2, 6)])

    def test_savings_are_against_fp16_of_the_same_length(self):
        rows = [kld_row("fp16", 16, 0, context=128), kld_row("adaptive:3", 4, 0.1, context=128),
                kld_row("rule", 8, 0.1, context=128)]
        self.assertEqual(report_page.savings_rows(rows),
                         [["128", "`adaptive:3`", "2", "4.00 (3.75 to 4.25)", "500", "2,000",
                           "1,500 (75 %)"]])

    def test_builds_that_differ_are_told_of(self):
        parts = [(Part(name, "kld", "whit-eval", ()), {"build": name, "rows": [], "notes": []})
                 for name in ("a", "b")]
        self.assertIn("different builds",
                      report_page.page(report_page.Results(parts), "report", quick=True))
        self.assertNotIn("different builds",
                         report_page.page(report_page.Results(parts[:1]), "report", quick=True))

    def test_figures_that_are_not_known_are_empty(self):
        self.assertEqual(report_page.decimal(math.nan, 2), "")
        self.assertEqual(report_page.decimal(None, 2), "")
        self.assertEqual(report_page.interval(1, [None, None], 1), "1.0")


if __name__ == "__main__":
    unittest.main()
