"""A deploy's stages: from the moments that were noted to a table, a record and a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Stage:
    """What went on until `name` was reached: it began `start` seconds after the order and took `seconds`."""

    name: str
    start: float
    seconds: float


def stages(moments: Mapping[str, float]) -> list[Stage]:
    """Stages from moments (name: seconds since the epoch); the earliest is the order itself and makes no stage."""
    ordered = sorted(moments.items(), key=lambda item: item[1])
    if not ordered:
        return []
    zero = ordered[0][1]
    return [
        Stage(name, round(before - zero, 3), round(at - before, 3)) for (_, before), (name, at) in pairwise(ordered)
    ]


def between(moments: Mapping[str, float], first: str, last: str) -> float | None:
    """Seconds from one moment to another; None when either was not noted."""
    if first not in moments or last not in moments:
        return None
    return round(moments[last] - moments[first], 3)


def draw(path: Path, servers: Mapping[str, Sequence[Stage]], proofs: Mapping[str, bool]) -> None:
    """One bar a server, a colour a stage, as SVG. The proofs stand in the caption."""
    import matplotlib as mpl  # takes a second to import, which no other command should pay

    mpl.use("svg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(stage.name for row in servers.values() for stage in row))
    colours = {name: plt.get_cmap("tab20")(number % 20) for number, name in enumerate(names)}
    figure, axes = plt.subplots(figsize=(11, 1.6 + 0.7 * len(servers)), layout="constrained")
    for row, parts in enumerate(servers.values()):
        for stage in parts:
            axes.barh(row, stage.seconds, left=stage.start, color=colours[stage.name], edgecolor="white", height=0.6)
        if parts:
            total = parts[-1].start + parts[-1].seconds
            axes.text(total, row, f"  {total:.1f} s", va="center")
    axes.set_yticks(range(len(servers)), list(servers))
    axes.invert_yaxis()
    axes.set_xlabel("seconds since `baremetal node deploy`")
    passed = sum(proofs.values())
    axes.set_title(f"One boot from a cloned volume through the DPU; {passed} of {len(proofs)} proofs hold")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [mpl.patches.Patch(color=colours[name], label=name) for name in names]
    axes.legend(
        handles=handles, ncols=4, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.35), frameon=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
