"""What each benchmark is meant to reach, and whether a record reaches it. Standard library only.

Ratios are a plain loop's time (or memory) over minilib's unless their name says otherwise.
"""

from __future__ import annotations

import json
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
    case, number = record["case"], (benchmark, ratio, kind)
    for one in TARGETS:
        here = case.get("device", "cpu") in one.devices and one.where.items() <= case.items()
        if here and (one.benchmark, one.ratio, one.kind) == number:
            return one
    return None


def numbers(record: dict) -> dict[tuple[str, str], float]:
    """(kind, name) → median of each ratio, and share of each part."""
    ratios = {
        (kind, name): value["median"] if isinstance(value, dict) else value
        for kind in (RATIOS, MEMORY)
        for name, value in record.get(kind, {}).items()
    }
    parts = record.get(SHARES, {}).get("parts", {})
    return ratios | {(SHARES, name): part["share"] for name, part in parts.items()}


def summary(files: list[Path]) -> str:
    """A line per ratio of result files, and per share that a target asks for."""
    lines = [f"{'median':>7} {'target':>8}  reached  ratio"]
    for file in files:
        name, found = file.stem.partition("-")[0], json.loads(file.read_text(encoding="utf-8"))
        for record in found if isinstance(found, list) else [found]:
            for (kind, ratio), median in numbers(record).items():
                wanted = target(name, record, ratio, kind)
                if wanted or kind != SHARES:
                    yes = "–" if wanted is None else "yes" if wanted.reached(median) else "no"
                    said, about = wanted.said() if wanted else "–", "" if kind == RATIOS else kind
                    title = f"{record['what'].partition(':')[0]}: {ratio} {about}"
                    lines.append(f"{median:>7.2f} {said:>8}  {yes:<7}  {title}")
    return "\n".join(lines)
