"""A plan for every pool of RunPod's: which hold a model, as asked for or with a change, the cheapest first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from images.build_errors import UnknownChoice
from images.releases import Releases
from tools.plan.advise import Advice, advise
from tools.plan.fit import Fit, PlanRequest, Pool, image_for
from tools.plan.listing import ModelSummary

__all__ = ["PoolRow", "plan_pools", "table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRow:
    """What a plan says of one pool; `advice` is None where no image covers its GPUs."""

    pool: Pool
    advice: Advice | None
    price: float | None = None
    """USD an hour of one of its GPUs."""

    @property
    def works(self) -> Fit | None:
        """What can be deployed on it."""
        return self.advice.works if self.advice else None

    @property
    def cost(self) -> float | None:
        """USD an hour of one worker."""
        return self.price * self.works.asked.count if self.price is not None and self.works else None

    def order(self) -> tuple[int, float, int]:
        """Return the key by which rows are sorted: what fits as asked for, what fits with a change, the rest; each by cost, then memory."""
        if not self.works or not self.advice:
            return (2 + (self.advice is None), 0.0, self.pool.memory)
        changed = int(self.works is not self.advice.fit)
        return (changed, self.cost if self.cost is not None else 0.0, self.pool.memory * self.works.asked.count)


def plan_pools(
    model: ModelSummary, asked: PlanRequest, pools: Iterable[Pool], releases: Releases, release: str, prices: Mapping[str, float]
) -> list[PoolRow]:
    """Return a row for each pool, the cheapest that fits first; `asked` names one pool, which is replaced by each.

    Raises:
        InvalidSettings: naming every value that the model or the release does not allow.
    """
    rows = []
    for pool in pools:
        advice = None
        try:
            target = image_for(pool, releases, release)
        except UnknownChoice:
            pass
        else:
            advice = advise(model, replace(asked, pool=pool), target, {pool.name: pool}, releases)
        rows.append(PoolRow(pool=pool, advice=advice, price=prices.get(pool.name)))
    return sorted(rows, key=PoolRow.order)


def table(rows: Iterable[PoolRow], positions: int) -> str:
    """Return the rows for a person; `positions` is the model's own longest context."""
    head = ("pool", "GPUs", "image", "longest request", "USD an hour", "verdict")
    lines = [head, *(_cells(row, positions) for row in rows)]
    if all(line[4] in ("", head[4]) for line in lines):
        lines = [(*line[:4], line[5]) for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def _cells(row: PoolRow, positions: int) -> tuple[str, ...]:
    pool, works = row.pool, row.works
    memory = f"{pool.gib} GiB"
    if row.advice is None:
        return (pool.name, memory, "none", "", "", f"no image covers {'/'.join(pool.architectures)}")
    if works is None:
        return (pool.name, memory, row.advice.fit.target.arguments, "", "", row.advice.problem or "does not fit, with no change")
    cost = "" if row.cost is None else f"{row.cost:.2f}"
    verdict = "fits" if works is row.advice.fit else f"fits with {row.advice.words}"
    return (pool.name, f"{works.asked.count} x {memory}", works.target.arguments, f"{works.longest(positions)}", cost, verdict)
