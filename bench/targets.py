"""What each benchmark is meant to reach, and whether a record reaches it. Standard library only.

Ratios are a plain loop's time (or memory) over minilib's unless their name says otherwise; every
target holds where the losses are equal, without which there is no record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

DEVICES = ("cpu", "cuda")
RATIOS, MEMORY, SHARES = "ratios", "memory_ratios", "limits"


@dataclass(frozen=True)
class Target:
    """One number that a record should reach.

    Attributes:
        benchmark: its name. ratio: the number's name in the record.
        value: at least this much; at most, where ``most``.
        devices: on which it is asked for.
        where: what the record's case must be, by name.
        kind: the part of the record: RATIOS, MEMORY, or SHARES of the machine's limit.
    """

    benchmark: str
    ratio: str
    value: float
    most: bool = False
    devices: tuple[str, ...] = DEVICES
    where: dict = field(default_factory=dict)
    kind: str = RATIOS

    def said(self) -> str:
        """The target in a word."""
        number = f"{100 * self.value:g} %" if self.kind == SHARES else f"{self.value:g}"
        return f"{'≤' if self.most else '≥'} {number}"

    def reached(self, median: float) -> bool:
        """Tell whether a median is as good as it should be."""
        return median <= self.value if self.most else median >= self.value


LONG = {"stage": 1, "max_length": 1024}
TARGETS = (
    Target("rga", "plain / minilib", 5, devices=("cpu",)),
    Target("rga", "plain / minilib", 10, devices=("cuda",)),
    *(Target("btu", part, 5) for part in ("train", "train star", "rank", "unlearn")),
    *(
        Target("sande", "plain / minilib", 4, where={"stage": 1, "max_length": length})
        for length in (256, 1024)
    ),
    Target("sande", "plain / minilib", 3, where=LONG, kind=MEMORY),
    Target("bi_bau", "pgd, minilib to plain", 2),
    Target("bi_bau", "pgd of 5 steps, minilib to plain", 2),
    *(
        Target("bi_bau", f"epoch, bi-bau to {whose} adversarial training", 1.2, most=True)
        for whose in ("plain", "minilib's")
    ),
    Target("finetune", "trainer best / minilib", 1, devices=("cpu",)),
    Target("finetune", "trainer best / minilib", 1.5, devices=("cuda",)),
    Target(
        "finetune", "200 steps, minilib", 0.4, devices=("cuda",),
        where={"model": "bert-base-sized"}, kind=SHARES,
    ),
)  # fmt: skip


def target(benchmark: str, record: dict, ratio: str, kind: str = RATIOS) -> Target | None:
    """The target of one number of a record, if it has one."""
    case = record["case"]
    for one in TARGETS:
        same = (one.benchmark, one.ratio, one.kind) == (benchmark, ratio, kind)
        if (
            same
            and case.get("device", "cpu") in one.devices
            and all(case.get(name) == value for name, value in one.where.items())
        ):
            return one
    return None


def numbers(record: dict) -> Iterator[tuple[str, str, float, str]]:
    """Kind, name, median and range of each ratio, and of each share that a target asks for."""
    for kind in (RATIOS, MEMORY):
        for name, value in record.get(kind, {}).items():
            if isinstance(value, dict):
                yield kind, name, value["median"], f"{value['min']:.2f} – {value['max']:.2f}"
            else:
                yield kind, name, value, "–"
    for name, part in record.get(SHARES, {}).get("parts", {}).items():
        yield SHARES, name, part["share"], "–"


def summary(files: list[Path]) -> str:
    """One short table of result files: what was measured, the target if any, and if reached."""
    lines = [f"{'ratio':<72} {'median':>7} {'lowest – highest':>17} {'target':>8}  reached"]
    for file in files:
        name = file.stem.removesuffix("-quick").rpartition("-")[0]
        found = json.loads(file.read_text(encoding="utf-8"))
        for record in found if isinstance(found, list) else [found]:
            lines += list(_lines(name, record))
    return "\n".join(lines)


def _lines(name: str, record: dict) -> Iterator[str]:
    case = record["case"]
    which = [f"{k.replace('max_', '')} {case[k]}" for k in ("stage", "max_length") if k in case]
    which += [str(case["model"])] if name in ("finetune", "seeds") else []
    title = " ".join([name, *which])
    for kind, ratio, median, span in numbers(record):
        wanted = target(name, record, ratio, kind)
        if kind == SHARES and wanted is None or "in passes" in ratio:
            continue
        label = f"{title}: {ratio}{', memory' if kind == MEMORY else ''}"
        said = wanted.said() if wanted else "–"
        yes = "–" if wanted is None else ("yes" if wanted.reached(median) else "no")
        yield f"{label:<72} {median:>7.2f} {span:>17} {said:>8}  {yes}"
