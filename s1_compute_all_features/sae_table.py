"""What a run measured of its SAEs, beside what was published."""

from collections.abc import Mapping, Sequence

from s1_compute_all_features.sae_weights import LocatedSae


def sae_table(
    saes: Sequence[LocatedSae], mean_l0: Mapping[str, float], explained: Mapping[str, float]
) -> str:
    """The measured l0 of every SAE beside the published one, and the variance it explains; sinks left out.

    Args:
        saes: of the run.
        mean_l0: by name, of those that encoded something; empty without any, and so is the table.
        explained: by name, of those whose reconstruction was checked.
    """
    lines = [
        f"{'SAE':<24}{'l0 here':>9}{'published':>11}" + (f"{'variance explained':>20}" if explained else "")
    ]
    for located in saes:
        name, published = located.entry.name, located.entry.average_l0
        if name not in mean_l0:
            continue
        line = f"{name:<24}{mean_l0[name]:>9.1f}{'' if published is None else published:>11}"
        if name in explained:
            line += f"{explained[name]:>20.3f}"
        if published and not 0.5 <= mean_l0[name] / published <= 2:
            line += (
                "  warning: a factor over 2 is the sign of a wrong hook, or of text unlike its training text"
            )
        lines.append(line)
    return "\n".join(lines) if len(lines) > 1 else ""
