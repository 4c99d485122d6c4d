"""What ``restoration-env speed`` measured, as the tables and sentences of the pages (Markdown)."""

from __future__ import annotations

from typing import Any


def speed_table(result: dict[str, Any]) -> str:
    """Each way to compute the tools: environments side by side, and a photograph through three tools, as Markdown."""
    photograph, agree = result["photograph"], result["agreement_db"]
    units = ", ".join(result.get("processor", ["environments"]))
    heads = [units, f"steps/s, N = {result['environments']}", "times naive", "share of limit", "dB off at most"]
    heads += [f"{photograph['width']}x{photograph['height']}, times faster", "times less memory"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in result["rates"].items():
        cells = ["", "", "", "", ""]
        if name != "naive":
            photo, off = photograph[name], agree.get(name, {}).get("largest")
            cells = [
                f"{row['ratio_to_naive']:.2f}",
                f"{row['share_of_limit']:.1%}",
                "" if off is None else f"{off:.4f}",
            ]
            cells += [f"{photo['times_faster']:.2f}", f"{photo['times_less_memory']:.2f}"]
        lines.append(f"| {name} | {row['steps_per_second']:,.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def training_steps_table(result: dict[str, Any]) -> str:
    """Milliseconds a patch of a training step, how many times faster than directly, and a step of Muon, as Markdown."""
    steps, muon = result["training_steps"], result["muon_steps"]
    heads = ["network", *next(iter(steps.values())), *(f"Muon: {kind}" for kind in next(iter(muon.values())))]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, ways in steps.items():
        cells = [f"{way['milliseconds_per_patch']:.1f} ({way['times_faster']:.2f})" for way in ways.values()]
        cells += [f"{milliseconds:.0f}" for milliseconds in muon[name].values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def speed_gpu_table(result: dict[str, Any]) -> str:
    """What a GPU does for each number of environments, as Markdown."""
    rates, graphs = result["sweep"][result["fastest"]], result["graphs"]
    heads = [
        "N",
        "steps/s",
        "microseconds an image",
        "share of limit",
        "resets/s",
        "tools alone, images/s",
        "as a graph",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for count, row in rates.items():
        alone = (f"{graphs[count][how]:,.0f}" for how in ("plain", "graph"))
        cells = [f"{row['steps_per_second']:,.0f}", f"{row['microseconds_per_image']:,.1f}"]
        cells += [f"{row['share_of_limit']:.0%}", f"{row['resets_per_second']:,.0f}", *alone]
        lines.append(f"| {int(count):,} | {' | '.join(cells)} |")
    naive, photo, most = result["rates"]["naive"], result["photograph"], max(rates, key=int)
    whole, tiled = photo["whole image, float32"], photo[result["fastest"]]
    share = rates[most]["steps_per_second"] / graphs[most]["plain"]
    waits, size = result["synchronisations_in_8_steps"], f"{photo['width']}x{photo['height']}"
    lines += [
        "",
        f"A `DummyVecEnv` of {result['environments']} made {naive['steps_per_second']:,.0f} steps a second there.",
        f"Of a step of {int(most):,} images the tools took {share:.0%}, the next episodes most of the rest.",
        f"In eight steps the host waited for the GPU {waits} times, as torch counts it.",
        f"A photograph of {size} pixels took {tiled['seconds']:.3f} s and {tiled['peak_mib']:,.0f} MiB in tiles,",
        f"{whole['seconds']:.3f} s and {whole['peak_mib']:,.0f} MiB as a whole in float32.",
    ]
    return "\n".join(lines)


def speed_gpu_sentence(result: dict[str, Any]) -> str:
    """What a GPU does, in a sentence."""
    rates = result["sweep"][result["fastest"]]
    most = max(rates, key=lambda count: rates[count]["steps_per_second"])
    row = rates[most]
    call, rate = '`make_vec(..., device="cuda", output="torch")`', f"{row['steps_per_second']:,.0f}"
    said = f"{call} stays on a GPU: {rate} steps a second\non one {result['device']}, N = {int(most):,}"
    return f"{said} ([how](docs/speed.md#on-a-gpu))."
