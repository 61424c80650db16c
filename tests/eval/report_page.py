"""The page that tests/eval/report writes, from what its parts found. Nothing is measured here.

A figure stands on the page only if a part found it; what was not run is said to be missing.
"""

import math
import pathlib
import random

from report_parts import LENGTHS_ARMS, TABLE3, TIMED

FP16 = "fp16"
RESAMPLES = 2000
KINDS = {
    "sink": "first page (sink)",
    "punctuation": "punctuation",
    "whitespace": "whitespace, line ends",
    "digits": "digits",
    "word_start": "word starts",
    "word_continuation": "word continuations",
}


class Results:
    """Rows of the parts that were run, and the names of those that were not."""

    def __init__(self, parts_and_found):
        self.parts = parts_and_found

    def rows(self, kind):
        """Each arm of each task or context once; FP16 is in every part."""
        rows = {}
        for part, found in self.parts:
            for row in found["rows"] if found and part.kind == kind else ():
                rows.setdefault((row.get("task"), row.get("context"), row["arm"]), row)
        return list(rows.values())

    def bench(self):
        """Seconds a token by (arm, row of whit-bench), and what was said of neighbours."""
        seconds, notes = {}, set()
        for part, found in self.parts:
            if not found or part.kind != "bench":
                continue
            arm = part.arguments[part.arguments.index("--kv-policy") + 1]
            for row in found["rows"]:
                if row["unit"] == "tok/s":
                    seconds[arm, row["name"]] = 1 / row["value"]
            notes.update(f"`{arm}`: {note}" for note in found["notes"])
        return seconds, sorted(notes)

    def missing(self, *kinds):
        return [part.name for part, found in self.parts if part.kind in kinds and not found]

    def builds(self):
        return sorted({(part.tool, found["build"]) for part, found in self.parts if found})


def family(arm):
    ring = arm.find("@")
    ring = ring if ring >= 0 else len(arm)
    return arm[:ring].split(":")[0] + arm[ring:]


def label(arm):
    return arm.split("@")[0].partition(":")[2] or arm


def group(rows, key):
    groups = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join(lines)


def decimal(value, digits):
    return "" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def interval(value, ci, digits, signed=False, scale=1):
    sign = "+" if signed else ""
    text = f"{scale * value:{sign}.{digits}f}"
    if ci is None or None in ci:
        return text
    return f"{text} [{scale * ci[0]:{sign}.{digits}f}, {scale * ci[1]:{sign}.{digits}f}]"


def note_missing(names):
    if not names:
        return ""
    return "\n*Missing, not run: " + ", ".join(f"`{name}`" for name in names) + ".*\n"


def section(title, body, missing):
    return f"## {title}\n\n{body or 'Not measured.'}\n{note_missing(missing)}"


def picture(name, text):
    return f"![{text}]({name})"


# ---- KL divergence


def kld_table(rows):
    return table(
        ["policy", "true bits", "time-averaged", "packed bits", "KLD [95 %]", "Δ ln PPL [95 %]",
         "same top token"],
        [[f"`{r['arm']}`", decimal(r["true_bits"], 2), decimal(r["true_bits_time_averaged"], 2),
          decimal(r["packed_bits"], 2), interval(r["kld_mean"], r["ci95"]["kld_mean"], 5),
          interval(r["delta_ln_ppl"], r["ci95"]["delta_ln_ppl"], 4, signed=True),
          f"{100 * r['top1_agreement']:.1f} %"]
         for r in rows if r["arm"] != FP16])


def bits_at_equal_kld(curve, kld):
    """True bits at which a family's points, joined straight in (bits, ln KLD), have this KLD; None
    outside of them."""
    points = sorted((r["true_bits"], r["kld_mean"]) for r in curve if r["kld_mean"] > 0)
    for (bits, above), (more_bits, below) in zip(points, points[1:]):
        if below <= kld <= above and below < above:
            share = math.log(above / kld) / math.log(above / below)
            return bits + share * (more_bits - bits)
    return None


def saved_bits_table(rows, others):
    families = group([{**r, "family": family(r["arm"])} for r in rows], "family")
    lines = []
    for row in families.get("adaptive", []):
        cells = [f"`{row['arm']}`", decimal(row["true_bits"], 2)]
        for other in others:
            bits = bits_at_equal_kld(families.get(other, []), row["kld_mean"])
            cells.append("" if bits is None else f"{bits - row['true_bits']:+.2f}")
        lines.append(cells)
    return table(["policy", "true bits", *(f"{other} needs" for other in others)], lines)


def paired_difference(ours, theirs):
    """Mean of ours - theirs over the same chunks, and its 95 % interval from drawing whole chunks."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = sum(differences) / len(differences)
    if len(differences) < 2:
        return mean, None
    draw = random.Random(1)
    means = sorted(sum(draw.choices(differences, k=len(differences))) / len(differences)
                   for _ in range(RESAMPLES))
    return mean, [means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]]


def paired_table(rows):
    lines = []
    for ours in rows:
        if family(ours["arm"]) != "adaptive":
            continue
        for theirs in rivals(ours, rows):
            mean, ci = paired_difference(ours["chunk_kld_mean"], theirs["chunk_kld_mean"])
            bits = ours["true_bits"] - theirs["true_bits"]
            lines.append([f"`{ours['arm']}`", f"`{theirs['arm']}`", f"{bits:+.2f}",
                          interval(mean, ci, 5, signed=True),
                          f"{ours['kld_mean'] / theirs['kld_mean']:.2f}"])
    return table(["policy", "against", "true bits more", "KLD more [95 %]", "ratio"], lines)


def rivals(ours, rows):
    """Of each other family, the arm whose true bits are nearest to ours among those with at least as
    many, less a tenth; the nearest of all if none has."""
    families = group([{**r, "family": family(r["arm"])} for r in rows], "family")
    chosen = []
    for name, members in families.items():
        if name in ("adaptive", FP16):
            continue
        enough = [r for r in members if r["true_bits"] >= ours["true_bits"] - 0.1]
        chosen.append(min(enough or members,
                          key=lambda r: abs(r["true_bits"] - ours["true_bits"])))
    return chosen


def kld_section(results):
    body = []
    rows = results.rows("kld")
    for context, of_context in sorted(group(rows, "context").items()):
        reference = next(r for r in of_context if r["arm"] == FP16)
        body += [
            f"### Context {context:,}",
            f"{reference['tokens']:,} positions in {len(reference['chunk_kld_mean'])} chunks, FP16 "
            f"perplexity {reference['fp16_ppl']:.2f}.",
            kld_table(of_context),
            "True bits that others need, more (+) or fewer (−), for the same KLD; empty where their "
            "measured points do not reach it:",
            saved_bits_table(of_context, ("static-allocated", "static", "random", "oracle")),
            "Chunk by chunk, against the arm of each other kind with the nearest true bits that are "
            "not fewer by more than a tenth, if there is one:",
            paired_table(of_context),
        ]
    if rows:
        body.insert(0, picture("kld.svg", "KL divergence against true bits"))
        body.insert(0, "KL divergence of the next token's distribution from that with FP16 keys and "
                       "values, in nats a token. `oracle` decides by what errors really do to the "
                       "queries to come, and knows where the text ends: it shows about how much a "
                       "better predictor of importance could gain.")
    return section("KL divergence against true bits", "\n\n".join(body), results.missing("kld"))


# ---- Tasks


def accuracy(row):
    return row.get("accuracy_norm") or row["accuracy"]


def accuracy_cells(row):
    found = accuracy(row)
    if row["arm"] == FP16:
        return [interval(found["share"], found["ci95"]["share"], 1, scale=100), "", ""]
    return [interval(found["share"], found["ci95"]["share"], 1, scale=100),
            f"{100 * found['delta']:+.1f}", f"{found['mcnemar_p']:.2f}"]


def accuracy_table(rows, key):
    return table(
        [key, "policy", "items", "accuracy % [95 %]", "to FP16", "p", "true bits"],
        [[str(row["task"]), f"`{row['arm']}`", str(row["items"]), *accuracy_cells(row),
          decimal(row["true_bits"], 2)] for row in rows])


def table3(rows, seconds):
    """The paper's Table 3: tasks x policies."""
    def milliseconds(arm, depth):
        found = seconds.get((arm, f"decode_d{depth}"))
        return "" if found is None else f"{1000 * found:.2f}"

    return table(
        ["task", "policy", "accuracy % [95 %]", "to FP16", "p", "KV bytes a token",
         "ms a token at 128", "at 2,048"],
        [[row["task"], f"`{row['arm']}`", *accuracy_cells(row),
          f"{row['kv_bytes_per_token']:,.0f}", milliseconds(row["arm"], 128),
          milliseconds(row["arm"], 2048)] for row in sort_by_task(rows) if row["arm"] in TABLE3])


def sort_by_task(rows):
    return [row for of_task in group(rows, "task").values() for row in of_task]


def against_static(seconds):
    """Time a token relative to static:K4V4, in words; only of what was measured."""
    lines = []
    for depth in (128, 2048):
        base = seconds.get(("static:K4V4", f"decode_d{depth}"))
        for arm in TIMED:
            found = seconds.get((arm, f"decode_d{depth}"))
            if base and found and arm != "static:K4V4":
                lines.append([f"{depth:,}", f"`{arm}`", f"{100 * (found / base - 1):+.1f} %"])
    return table(["depth", "policy", "time a token against `static:K4V4`"], lines) if lines else ""


def tasks_section(results):
    rows = results.rows("tasks")
    body = rows and (
        picture("tasks.svg", "Accuracy against true bits") +
        "\n\nBy likelihood per byte where a task has several choices. p is McNemar's exact test "
        "against FP16 on the same items.\n\n" + accuracy_table(sort_by_task(rows), "task"))
    return section("Accuracy of tasks against true bits", body, results.missing("tasks"))


def table3_section(results):
    rows = results.rows("tasks")
    seconds, notes = results.bench()
    body = []
    if rows:
        body += [
            "The tasks at their own lengths, where most tokens are still in the ring or the sink, so "
            "that little is quantized and the bytes of short contexts are mostly those. `naive:K4V4` "
            "is the paper's static 4-bit: the largest element of a token as its scale, without "
            "rotation or means. No kernel knows it, so it has no time; `static:K4V4` has.",
            table3(rows, seconds)]
    if seconds:
        body += [against_static(seconds), *(f"*{note}*" for note in notes)]
    return section("Table 3 of “Don't Waste Bits!”", "\n\n".join(filter(None, body)),
                   results.missing("tasks", "bench"))


def long_section(results):
    rows = results.rows("long")
    body = rows and (
        picture("long.svg", "Accuracy with a long prefix") +
        "\n\nEach item comes after solved items of the same task, so that the cache has something to "
        f"hold: up to {max(row['context'] for row in rows):,} tokens.\n\n" +
        accuracy_table(sort_by_task(rows), "task"))
    return section("Tasks after a long prefix", body, results.missing("long"))


def needle_section(results):
    rows = results.rows("needle")
    body = rows and (
        "Six digits said once in a long text, asked for at its end, by greedy decoding.\n\n" +
        accuracy_table(sort_by_task(rows), "task"))
    return section("Needle in a haystack", body, results.missing("needle"))


# ---- Where the bits go, and what is saved


def mean_by_head(bits):
    pairs = bits["by_layer_and_kv_head"]
    return [sum(heads) / len(pairs) for heads in zip(*pairs)]


def mean_by_layer(bits):
    return [sum(heads) / len(heads) for heads in bits["by_layer_and_kv_head"]]


def allocating(rows):
    """The arms that choose, at the longest context that was measured."""
    longest = max((row["context"] for row in rows), default=0)
    return [row for row in rows if row["context"] == longest and "bits" in row
            and family(row["arm"]) not in ("static", "random")]


def bits_section(results):
    rows = allocating(results.rows("kld"))
    body = ""
    if rows:
        kinds = [kind for kind in KINDS if any(kind in r["bits"]["by_token_kind"] for r in rows)]
        counts = rows[0]["bits"]["by_token_kind"]
        heads = len(mean_by_head(rows[0]["bits"]))
        body = "\n\n".join([
            picture("bits.svg", "Bits by layer"),
            f"Packed bits of decided tokens at a context of {rows[0]['context']:,}. The first page "
            "is not decided: it stays at its rung.",
            "By kind of token (under each, how many):",
            table(["policy", *(KINDS[kind] for kind in kinds)],
                  [["", *(f"{counts[kind]['tokens']:,}" if kind in counts else "" for kind in kinds)]]
                  + [[f"`{r['arm']}`",
                      *(decimal(r["bits"]["by_token_kind"].get(kind, {}).get("packed_bits"), 2)
                        for kind in kinds)] for r in rows]),
            "By KV head, mean over layers:",
            table(["policy", *(f"head {head}" for head in range(heads)), "lowest layer",
                   "highest layer"],
                  [[f"`{r['arm']}`", *(decimal(bits, 2) for bits in mean_by_head(r["bits"])),
                    decimal(min(mean_by_layer(r["bits"])), 2),
                    decimal(max(mean_by_layer(r["bits"])), 2)] for r in rows]),
        ])
    return section("Where the bits go", body, results.missing("kld"))


def savings_rows(rows):
    """Of each length and arm: true bits of the requests, bytes of one, and what FP16 takes."""
    fp16 = {row["context"]: row for row in rows if row["arm"] == FP16}
    lines = []
    for row in sorted(rows, key=lambda row: row["context"]):
        if row["arm"] not in LENGTHS_ARMS:
            continue
        length, bits = row["context"], row["chunk_true_bits"]
        held = row["kv_bytes_per_token"] * length
        exact = fp16[length]["kv_bytes_per_token"] * length
        lines.append([f"{length:,}", f"`{row['arm']}`", str(len(bits)),
                      f"{row['true_bits']:.2f} ({min(bits):.2f} to {max(bits):.2f})",
                      f"{held / 1024:,.0f}", f"{exact / 1024:,.0f}",
                      f"{(exact - held) / 1024:,.0f} ({100 * (1 - held / exact):.0f} %)"])
    return lines


def savings_section(results):
    lines = savings_rows(results.rows("lengths") + results.rows("kld"))
    body = lines and (
        "What a request of a length holds when it ends: everything, ring, sink, slack and tables "
        "included.\n\n" +
        table(["tokens", "policy", "requests", "true bits (least to most)", "KiB held", "KiB at FP16",
               "KiB saved"], lines))
    return section("What a request saves", body, results.missing("lengths", "kld"))


# ---- The page


def plots(results):
    """Names of pictures and what `whit-eval plot` is to draw; only of what was measured."""
    pictures = {}
    rows = results.rows("kld")
    if rows:
        pictures["kld.svg"] = {"title": "KL divergence against the bits held", "panels": [
            {"title": f"context {context:,}", "x_label": "true bits per element",
             "y_label": "KL divergence from FP16 (nats)", "log_y": True,
             "points": [{"series": family(r["arm"]), "label": label(r["arm"]),
                         "x": r["true_bits"], "y": r["kld_mean"],
                         "low": r["ci95"]["kld_mean"][0], "high": r["ci95"]["kld_mean"][1]}
                        for r in of_context if r["arm"] != FP16]}
            for context, of_context in sorted(group(rows, "context").items())]}
    if allocating(rows):
        pictures["bits.svg"] = {"title": "Bits of decided tokens by layer", "panels": [
            {"title": name, "x_label": "layer", "y_label": "packed bits per element",
             "points": [{"series": label(r["arm"]), "x": layer, "y": bits} for r in members
                        for layer, bits in enumerate(mean_by_layer(r["bits"]))]}
            for name, members in group([{**r, "family": family(r["arm"])}
                                        for r in allocating(rows)], "family").items()]}
    for kind, title in (("tasks", "Accuracy against the bits held"),
                        ("long", "Accuracy after a long prefix")):
        of_kind = results.rows(kind)
        if of_kind:
            pictures[f"{kind}.svg"] = {"title": title, "panels": [
                accuracy_panel(task, of_task) for task, of_task in group(of_kind, "task").items()]}
    return pictures


def accuracy_panel(task, rows):
    panel = {"title": task, "x_label": "true bits per element", "y_label": "accuracy (%)",
             "points": []}
    for row in rows:
        found = accuracy(row)
        if row["arm"] == FP16:
            panel["reference"] = 100 * found["share"]
            panel["reference_label"] = f"FP16: {100 * found['share']:.1f}"
            continue
        low, high = (None if end is None else 100 * end for end in found["ci95"]["share"])
        panel["points"].append({"series": family(row["arm"]), "label": label(row["arm"]),
                                "x": row["true_bits"], "y": 100 * found["share"],
                                "low": low, "high": high})
    return panel


def page(results, command, quick):
    done = sum(1 for _, found in results.parts if found)
    any_row = next((row for _, found in results.parts if found for row in found["rows"]
                    if "model" in row), None)
    head = ["# What precision costs, and what it saves", ""]
    if any_row:
        head += [f"Model {any_row['model']}, policy file "
                 f"`{pathlib.Path(any_row['policy_file']).name}`."]
    head += [f"{done} of {len(results.parts)} parts were run.", "", "```sh", command, "```", ""]
    if quick:
        head += ["**A quick run: it shows that everything works. Its figures are of too few tokens "
                 "and items to mean much.**", ""]
    if len({build for tool, build in results.builds() if tool == "whit-eval"}) > 1:
        head += ["**The parts come from different builds of whit-eval; --force runs all again.**", ""]
    return "\n".join(head) + "\n" + "\n".join([
        kld_section(results), tasks_section(results), table3_section(results),
        long_section(results), needle_section(results), bits_section(results),
        savings_section(results)])
